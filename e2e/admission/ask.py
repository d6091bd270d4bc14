#!/usr/bin/env python3
"""Puts the cases to an API server that has the policy, and compares the verdicts.

usage: ask.py SERVER TOKEN CASES.json RULES.json

Pods are only tried (dryRun): nothing runs them.
"""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request

server, token, cases_file, rules_file = sys.argv[1:]
CONFIG_MAP = "/api/v1/namespaces/kube-system/configmaps/aufs-csi-admission"
# It signs its certificate itself, and is on this machine.
context = ssl._create_unverified_context()


def call(method, path, body, kind="application/json"):
    """The status and the answer."""
    request = urllib.request.Request(
        server + path, json.dumps(body).encode(), method=method
    )
    request.add_header("Authorization", "Bearer " + token)
    request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, context=context) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pod(case):
    csi = {"driver": "aufs-csi.dev", "readOnly": case["readOnly"]}
    if case["attributes"]:
        csi["volumeAttributes"] = case["attributes"]
    csi.update(case.get("csi", {}))
    spec = {
        "containers": [{"name": "c", "image": "c"}],
        "volumes": [{"name": "other", "emptyDir": {}}, {"name": "v", "csi": csi}],
    }
    if "hostUsers" in case:
        spec["hostUsers"] = case["hostUsers"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": spec,
    }


def verdict(case):
    """Whether it is accepted, and what was said; any other refusal ends all."""
    status, answer = call("POST", "/api/v1/namespaces/default/pods?dryRun=All", pod(case))
    if status in (200, 201):
        return True, ""
    said = answer.get("message", "")
    if "ValidatingAdmissionPolicy 'aufs-csi.dev'" not in said or "evaluat" in said or "error" in said:
        sys.exit(f"{case['name']}: refused otherwise: {status} {said}")
    return False, said


def await_verdict(case, why):
    """The API server learns of policies and parameters a little later."""
    for _ in range(120):
        if verdict(case)[0] == case["accepted"]:
            return
        time.sleep(0.5)
    sys.exit(f"{why}: {case['name']} is still not {case['accepted']}: {verdict(case)[1]}")


wrong = 0
count = 0


def judge(case, where):
    global wrong, count
    count += 1
    accepted, said = verdict(case)
    if accepted != case["accepted"]:
        wrong += 1
        print(f"FAILED {where}{case['name']}: accepted {accepted}, not {case['accepted']} {said}")


def set_parameters(values):
    kind = "application/merge-patch+json"
    status, answer = call("PATCH", CONFIG_MAP, {"data": values}, kind)
    if status != 200:
        sys.exit(f"cannot set {values}: {answer}")


with open(cases_file) as file:
    cases = json.load(file)
with open(rules_file) as file:
    rules = json.load(file)

refused = next(case for case in cases if not case["accepted"])
await_verdict(refused, "the policy")
for case in cases:
    judge(case, "")
for case in [
    {"name": "fsType", "accepted": False, "csi": {"fsType": "ext4"}},
    {"name": "another driver", "accepted": True, "csi": {"driver": "other.example"}},
]:
    judge({"readOnly": False, "attributes": {"image": "a"}, **case}, "")
status, answer = call("GET", CONFIG_MAP, {})
before = answer["data"]
for rule in rules:
    set_parameters(rule["parameters"])
    where = ", ".join(rule["parameters"]) + ": "
    await_verdict(next(case for case in rule["cases"] if not case["accepted"]), where)
    for case in rule["cases"]:
        judge(case, where)
    set_parameters({key: before[key] for key in rule["parameters"]})
print(f"{count} cases, {wrong} wrong")
sys.exit(wrong > 0)
