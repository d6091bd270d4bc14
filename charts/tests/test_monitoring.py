"""The dashboard and the alerts ask for metrics, labels and values that a running
plugin has. As root: the plugin tests the node with real mounts."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

import yaml
from rendering import CHART, render

# What a metric's labels can be, where a plugin that has just started has none.
LABELS = {
    "aufs_csi_pulls_total": {"outcome": {"pulled", "cached", "failed"}},
    "aufs_csi_pull_retries_total": {"reason": None},
    "aufs_csi_repairs_total": {"kind": None},
    "aufs_csi_events_total": {"outcome": {"sent", "limited", "dropped", "refused", "failed"}},
    "csi_plugin_operations_seconds": {
        "driver_name": {"aufs-csi.dev"}, "method_name": None, "grpc_status_code": None, "le": None},
}
# As Go calls them, which is what dashboards for CSI drivers expect.
CODES = {"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
         "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
         "Internal", "Unavailable", "DataLoss", "Unauthenticated"}
METHODS = {"/csi.v1.Node/NodePublishVolume"}
# What Prometheus, its operator and a scraper's configuration add.
ADDED = {"instance", "node", "job", "pod", "namespace"}
SELECTOR = re.compile(r"\b((?:aufs_csi|csi_plugin|process)_[a-z_]+)(?:\{([^}]*)\})?")
MATCH = re.compile(r'([a-z_]+)(=~|!~|!=|=)"([^"]*)"')


def metrics():
    """Of a plugin: the types of all families, and the labels of all series."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        for name in ("store", "run", "kubelet/pods"):
            os.makedirs(f"{scratch}/{name}")
        command = [os.environ["AUFS_CSI"], "node", "--node-id=node-a", f"--root={scratch}/store",
                   f"--run-dir={scratch}/run", f"--kubelet-root={scratch}/kubelet",
                   f"--endpoint=unix://{scratch}/csi.sock", "--no-registration", "--no-events",
                   "--http-address=127.0.0.1:0"]
        with open(f"{scratch}/log", "w") as log:
            plugin = subprocess.Popen(command, stderr=log)
        try:
            deadline = time.monotonic() + 60
            address = None
            while address is None or "serving" not in read(f"{scratch}/log"):
                if plugin.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(read(f"{scratch}/log"))
                found = re.search(r"address=(127\.0\.0\.1:\d+)", read(f"{scratch}/log"))
                address = address or (found and found.group(1))
                time.sleep(0.05)
            # It makes a call, so that there are calls to be counted.
            urllib.request.urlopen(f"http://{address}/livez").close()
            with urllib.request.urlopen(f"http://{address}/metrics") as answer:
                return answer.read().decode()
        finally:
            plugin.send_signal(signal.SIGTERM)
            plugin.wait()


def read(path):
    return re.sub(r"\x1b\[[0-9;]*m", "", pathlib.Path(path).read_text())


class Monitoring(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = metrics()
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "info": ["_info"], "gauge": [""]}
        cls.families = {}
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", cls.text, re.MULTILINE):
            for suffix in suffixes[kind]:
                cls.families[name + suffix] = name
        # It has repaired nothing yet.
        for name in LABELS:
            if name.endswith("_total"):
                cls.families.setdefault(name, name.removesuffix("_total"))
        cls.labels = {}
        for name, labels in re.findall(r"^([a-z_]+)\{(.*)\} ", cls.text, re.MULTILINE):
            for label, _, value in MATCH.findall(labels):
                cls.labels.setdefault(name, {}).setdefault(label, set()).add(value)

    def judge(self, expression, grouped=True):
        for name, selector in SELECTOR.findall(expression):
            self.assertIn(name, self.families, expression)
            known = self.labels.get(name) or LABELS.get(name) or LABELS.get(self.families[name], {})
            for label, _, value in MATCH.findall(selector):
                if label in ADDED:
                    continue
                self.assertIn(label, known, expression)
                if label == "grpc_status_code":
                    self.assertLessEqual(set(value.split("|")), CODES, expression)
                elif label == "method_name":
                    self.assertIn(value, METHODS)
                elif known[label] is not None:
                    self.assertLessEqual(set(value.split("|")), known[label], expression)
            for by in re.findall(r"by \(([^)]*)\)", expression):
                for label in by.split(", "):
                    self.assertTrue(label in ADDED or label in known, f"{label}: {expression}")

    def test_alerts(self):
        rules = [rule for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
        self.assertGreater(len(rules), 5)
        for rule in rules:
            self.judge(rule["expr"])
            self.assertEqual(sorted(rule["annotations"]), ["description", "summary"])

    def test_a_plugin_that_says_nothing_is_found_by_its_job(self):
        rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]
        jobs = [job for rule in rules for job in re.findall(r'\bup\{job="([^"]*)"\}', rule["expr"])]
        self.assertEqual(len(jobs), 1)
        values = {"metrics": {"podMonitor": {"enabled": True}}, "nameOverride": "x", "fullnameOverride": "y"}
        endpoint = render(values).one("PodMonitor")["spec"]["podMetricsEndpoints"][0]
        self.assertIn({"targetLabel": "job", "replacement": jobs[0]}, endpoint["relabelings"])

    def test_every_alert_is_in_the_manual(self):
        rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]
        page = (CHART.parent.parent / "docs/operations.md").read_text()
        self.assertEqual({rule["alert"] for rule in rules}, set(re.findall(r"^\| `(AufsCsi\w+)` \|", page, re.MULTILINE)))

    def test_dashboard(self):
        dashboard = json.loads((CHART / "files/dashboard.json").read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        self.assertGreater(len(expressions), 15)
        for expression in expressions:
            self.judge(expression)
        self.judge(dashboard["templating"]["list"][1]["query"])

    def test_every_metric_of_ours_is_on_the_dashboard(self):
        shown = (CHART / "files/dashboard.json").read_text()
        for family in set(self.families.values()):
            # One is for the alerts alone; one is what pulls saved.
            if family not in ("process_start_time_seconds", "aufs_csi_pull_resumed_bytes"):
                self.assertTrue(family in shown, f"{family} is not on the dashboard")


if __name__ == "__main__":
    unittest.main()
