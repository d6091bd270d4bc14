"""What the chart makes of each of its values.

Run by `make chart`, which gives helm and the program in the environment.
"""

import copy
import json
import os
import re
import subprocess
import tempfile
import unittest

import yaml
from rendering import CHART, KUBE_VERSION, Objects, Refused, notes, render, text

DRIVER = "aufs-csi.dev"
# A cluster that has this object cannot be given another one with other values of
# its immutable fields; kubelet's behaviour hangs on the rest.
CSIDRIVER = {
    "attachRequired": False,
    "podInfoOnMount": True,
    "fsGroupPolicy": "None",
    "requiresRepublish": False,
    "storageCapacity": False,
    "seLinuxMount": False,
    "volumeLifecycleModes": ["Ephemeral"],
}
KUBELET = "/var/lib/kubelet"


class Default(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = render()
        cls.pod = cls.objects.pod

    def test_these_objects_and_no_others(self):
        self.assertEqual(
            sorted((one["kind"], one["metadata"]["name"]) for one in self.objects.all),
            [("CSIDriver", DRIVER), ("ClusterRole", "layers-aufs-csi-node"),
             ("ClusterRoleBinding", "layers-aufs-csi-node"), ("DaemonSet", "layers-aufs-csi-node"),
             ("Pod", "layers-aufs-csi-test"), ("ServiceAccount", "layers-aufs-csi")])

    def test_what_is_in_a_namespace_is_in_the_releases(self):
        for one in self.objects.all:
            cluster = one["kind"] in ("CSIDriver", "ClusterRole", "ClusterRoleBinding")
            self.assertEqual(one["metadata"].get("namespace"), None if cluster else "plugins", one["kind"])

    def test_the_driver_is_what_the_plugin_needs(self):
        driver = self.objects.one("CSIDriver")
        self.assertEqual(driver["apiVersion"], "storage.k8s.io/v1")
        self.assertEqual(driver["spec"], CSIDRIVER)
        self.assertEqual(
            driver["metadata"]["labels"]["security.openshift.io/csi-ephemeral-volume-profile"], "restricted")
        # A hook would be deleted and made again with every upgrade.
        self.assertNotIn("annotations", driver["metadata"])

    def test_rights_are_to_make_events_and_nothing_else(self):
        self.assertEqual(self.objects.one("ClusterRole")["rules"],
                         [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}])
        binding = self.objects.one("ClusterRoleBinding")
        self.assertEqual(binding["roleRef"]["name"], self.objects.one("ClusterRole")["metadata"]["name"])
        self.assertEqual(binding["subjects"], [
            {"kind": "ServiceAccount", "name": "layers-aufs-csi", "namespace": "plugins"}])
        self.assertFalse(self.objects.one("ServiceAccount")["automountServiceAccountToken"])
        self.assertTrue(self.pod["automountServiceAccountToken"])
        self.assertEqual(self.pod["serviceAccountName"], "layers-aufs-csi")

    def test_one_plugin_at_a_time_on_every_node(self):
        spec = self.objects.one("DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"],
                         {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}})
        self.assertEqual(self.pod["tolerations"], [{"operator": "Exists"}])
        self.assertEqual(self.pod["priorityClassName"], "system-node-critical")
        self.assertEqual(self.pod["nodeSelector"], {"kubernetes.io/os": "linux"})
        labels = spec["template"]["metadata"]["labels"]
        self.assertLessEqual(spec["selector"]["matchLabels"].items(), labels.items())
        # Or helm's test pod would be taken for one of the DaemonSet's.
        test = self.objects.one("Pod")["metadata"]["labels"]
        self.assertFalse(spec["selector"]["matchLabels"].items() <= test.items())

    def test_selectors_do_not_change_with_versions(self):
        # They are immutable.
        self.assertEqual(self.objects.one("DaemonSet")["spec"]["selector"], {"matchLabels": {
            "app.kubernetes.io/name": "aufs-csi", "app.kubernetes.io/instance": "layers",
            "app.kubernetes.io/component": "node"}})

    def test_it_is_on_the_nodes_network(self):
        self.assertTrue(self.pod["hostNetwork"])
        self.assertEqual(self.pod["dnsPolicy"], "Default")
        self.assertNotIn("hostPID", self.pod)

    def test_mounts_reach_the_node_from_where_kubelet_and_records_name_them(self):
        for path, kind in ((f"{KUBELET}/pods", "Directory"), ("/var/lib/aufs-csi", "DirectoryOrCreate")):
            mount, volume = self.objects.mount(path)
            self.assertEqual(mount["mountPropagation"], "Bidirectional")
            self.assertEqual(volume["hostPath"], {"path": path, "type": kind})
        for path, kind in ((f"{KUBELET}/plugins/{DRIVER}", "DirectoryOrCreate"),
                           (f"{KUBELET}/plugins_registry", "Directory"),
                           ("/run/aufs-csi", "DirectoryOrCreate")):
            mount, volume = self.objects.mount(path)
            self.assertNotIn("mountPropagation", mount)
            self.assertNotIn("readOnly", mount)
            self.assertEqual(volume["hostPath"], {"path": path, "type": kind})

    def test_the_rest_of_the_node_can_only_be_read(self):
        for path, source in (("/host/proc", "/proc"), ("/etc/containerd/certs.d",) * 2, ("/etc/ssl/certs",) * 2):
            mount, volume = self.objects.mount(path)
            self.assertTrue(mount["readOnly"])
            self.assertEqual(volume["hostPath"]["path"], source)
        self.assertEqual(len(self.objects.container()["volumeMounts"]), 8)
        self.assertEqual(len(self.pod["volumes"]), 8)

    def test_the_plugin_is_told_where_everything_is(self):
        self.assertEqual(self.objects.arguments, [
            "node", "--node-id=$(NODE_NAME)", f"--kubelet-root={KUBELET}",
            f"--endpoint=unix://{KUBELET}/plugins/{DRIVER}/csi.sock", "--http-address=127.0.0.1:9809",
            "--union=auto", "--log-format=json", "--certs-dir=/etc/containerd/certs.d",
            "--max-downloads=6", "--max-downloads-per-registry=3"])

    def test_commands_in_the_container_see_what_the_plugin_sees(self):
        node, *others = self.objects.container()["env"]
        self.assertEqual(node, {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
        self.assertEqual({one["name"]: one["value"] for one in others}, {
            "AUFS_CSI_ROOT": "/var/lib/aufs-csi", "AUFS_CSI_RUN_DIR": "/run/aufs-csi",
            "AUFS_CSI_HOST_PROC": "/host/proc", "AUFS_CSI_GC_HIGH": "80", "AUFS_CSI_GC_LOW": "70",
            "AUFS_CSI_MAX_STORE_SIZE": "none", "AUFS_CSI_GC_MIN_AGE": "2m", "AUFS_CSI_GC_MAX_AGE": "none"})

    def test_containers_have_a_root_they_cannot_write_to(self):
        # Bidirectional mounts are for privileged containers, says the API server.
        for container in ("plugin", "check"):
            self.assertEqual(self.objects.container(container)["securityContext"],
                             {"privileged": True, "readOnlyRootFilesystem": True, "runAsUser": 0})
        self.assertEqual(self.objects.container()["resources"], {"requests": {"cpu": "20m", "memory": "64Mi"}})

    def test_kubelet_asks_on_loopback(self):
        container = self.objects.container()
        live, ready = container["livenessProbe"], container["readinessProbe"]
        self.assertEqual(live["httpGet"], {"host": "127.0.0.1", "port": "http", "path": "/livez"})
        self.assertEqual(ready["httpGet"], {"host": "127.0.0.1", "port": "http", "path": "/readyz"})
        self.assertEqual(container["ports"], [{"name": "http", "containerPort": 9809, "protocol": "TCP"}])
        self.assertEqual((live["periodSeconds"], live["timeoutSeconds"], live["failureThreshold"]), (15, 5, 5))

    def test_the_check_tells_and_lets_pass(self):
        check = self.objects.container("check")
        self.assertEqual(check["args"], ["check", "--union=auto", "--report-only",
                                         "--root=/var/lib/aufs-csi", "--run-dir=/run/aufs-csi"])
        self.assertEqual([one["name"] for one in self.pod["initContainers"]], ["check"])

    def test_the_test_pod_runs_what_is_in_a_volume(self):
        pod = self.objects.one("Pod")
        self.assertEqual(pod["metadata"]["annotations"]["helm.sh/hook"], "test")
        image = f"ghcr.io/aufs-csi/aufs-csi:{version()}"
        self.assertEqual(pod["spec"]["volumes"], [
            {"name": "volume", "csi": {"driver": DRIVER, "volumeAttributes": {"image": image}}}])
        self.assertEqual(pod["spec"]["containers"][0]["command"], ["/volume/aufs-csi", "--version"])


def version():
    return yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]


class Values(unittest.TestCase):
    def test_image(self):
        image = {"repository": "mirror.example/aufs-csi", "tag": "2", "pullPolicy": "Always"}
        objects = render({"image": image, "imagePullSecrets": [{"name": "pull"}]})
        for container in ("plugin", "check"):
            self.assertEqual(objects.container(container)["image"], "mirror.example/aufs-csi:2")
            self.assertEqual(objects.container(container)["imagePullPolicy"], "Always")
        for spec in (objects.pod, objects.one("Pod")["spec"]):
            self.assertEqual(spec["imagePullSecrets"], [{"name": "pull"}])
        digest = "sha256:" + "0" * 64
        objects = render({"image": {**image, "digest": digest}})
        self.assertEqual(objects.container()["image"], f"mirror.example/aufs-csi@{digest}")
        self.assertEqual(objects.one("Pod")["spec"]["volumes"][0]["csi"]["volumeAttributes"]["image"],
                         f"mirror.example/aufs-csi@{digest}")

    def test_names(self):
        self.assertEqual(render(release="aufs-csi").one("DaemonSet")["metadata"]["name"], "aufs-csi-node")
        self.assertEqual(render({"fullnameOverride": "x"}).one("DaemonSet")["metadata"]["name"], "x-node")
        objects = render({"nameOverride": "z"})
        self.assertEqual(objects.one("DaemonSet")["metadata"]["name"], "layers-z-node")
        # The driver's is the program's own, and pods name it.
        self.assertEqual(objects.one("CSIDriver")["metadata"]["name"], DRIVER)

    def test_namespace(self):
        labels = render({"namespace": {"create": True}}).one("Namespace")["metadata"]["labels"]
        self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "privileged")

    def test_common_labels(self):
        for one in render({"commonLabels": {"team": "storage"}}).all:
            self.assertEqual(one["metadata"]["labels"]["team"], "storage", one["kind"])

    def test_kubelets_directory_everywhere(self):
        root = "/var/snap/microk8s/common/var/lib/kubelet"
        for given in (root, root + "/"):
            rendered = text({"kubeletRootDir": given, "sidecars": {"nodeDriverRegistrar": {"enabled": True}}})
            self.assertNotIn(KUBELET + "/", rendered.replace(root, ""))
            objects = Objects(rendered)
            self.assertEqual(objects.mount(f"{root}/pods")[0]["mountPropagation"], "Bidirectional")
            self.assertEqual(objects.option("--endpoint"), [f"unix://{root}/plugins/{DRIVER}/csi.sock"])
            self.assertEqual(objects.option("--kubelet-root"), [root])

    def test_union(self):
        objects = render({"union": "overlay"})
        self.assertEqual(objects.option("--union"), ["overlay"])
        self.assertIn("--union=overlay", objects.container("check")["args"])

    def test_check(self):
        self.assertNotIn("--report-only", render({"check": {"mode": "Refuse"}}).container("check")["args"])
        self.assertNotIn("initContainers", render({"check": {"mode": "Skip"}}).pod)
        resources = {"limits": {"memory": "1Gi"}}
        self.assertEqual(render({"check": {"resources": resources}}).container("check")["resources"], resources)

    def test_aufs_only(self):
        objects = render({"aufsOnly": {"enabled": True}})
        self.assertEqual(objects.option("--union"), ["aufs"])
        check = objects.container("check")["args"]
        self.assertIn("--union=aufs", check)
        self.assertNotIn("--report-only", check)
        rule = {"key": "node.aufs-csi.dev/kernel", "operator": "In", "values": ["aufs"]}
        self.assertIn(rule, node_terms(objects.pod)[0]["matchExpressions"])
        # Where the plugin is not, its test cannot be.
        self.assertIn(rule, node_terms(objects.one("Pod")["spec"])[0]["matchExpressions"])
        objects = render({"aufsOnly": {"enabled": True, "nodeLabel": {"key": "kernel", "value": "6.1-aufs"}}})
        self.assertIn({"key": "kernel", "operator": "In", "values": ["6.1-aufs"]},
                      node_terms(objects.pod)[0]["matchExpressions"])

    def test_affinity_is_added_to_ours(self):
        zone = {"key": "zone", "operator": "In", "values": ["a"]}
        other = {"key": "zone", "operator": "In", "values": ["b"]}
        preferred = [{"weight": 1, "preference": {"matchExpressions": [zone]}}]
        anti = {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}]}
        objects = render({"affinity": {"podAntiAffinity": anti, "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [zone]}, {"matchExpressions": [other]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": preferred}}})
        own = node_terms(render().pod)[0]["matchExpressions"]
        self.assertEqual(node_terms(objects.pod), [
            {"matchExpressions": own + [zone]}, {"matchExpressions": own + [other]}])
        affinity = objects.pod["affinity"]
        self.assertEqual(affinity["podAntiAffinity"], anti)
        self.assertEqual(affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"], preferred)

    def test_virtual_nodes_are_left_out(self):
        self.assertEqual(node_terms(render().pod), [{"matchExpressions": [
            {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
            {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]}]}])

    def test_store(self):
        objects = render({"store": {"hostPath": "/data/store", "runHostPath": "/run/x"}})
        mount, volume = objects.mount("/data/store")
        self.assertEqual((mount["mountPropagation"], volume["hostPath"]["path"]), ("Bidirectional", "/data/store"))
        self.assertEqual(objects.option("--root"), ["/data/store"])
        self.assertEqual(objects.option("--run-dir"), ["/run/x"])
        self.assertEqual(objects.mount("/data/store", "check")[1], volume)

    def test_local_images(self):
        objects = render({"localImages": ["/srv/images", "/srv/more"]})
        self.assertEqual(objects.option("--allow-local-images"), ["/srv/images", "/srv/more"])
        for path in ("/srv/images", "/srv/more"):
            mount, volume = objects.mount(path)
            self.assertTrue(mount["readOnly"])
            self.assertEqual(volume["hostPath"]["path"], path)

    def test_local_images_of_the_policy_are_mounted_once(self):
        objects = render({"localImages": ["/srv/images", "/srv/both"],
                          "policy": {"content": {"localImages": ["/srv/both/", "/srv/policy"]}}})
        # Which of them pods may name is the policy's to say.
        self.assertEqual(objects.option("--allow-local-images"), ["/srv/images", "/srv/both"])
        for path in ("/srv/images", "/srv/both", "/srv/policy"):
            mount, volume = objects.mount(path)
            self.assertTrue(mount["readOnly"])
            self.assertEqual(volume["hostPath"], {"path": path, "type": "DirectoryOrCreate"})
        self.assertEqual(len(objects.pod["volumes"]), len(render().pod["volumes"]) + 4)

    def test_local_images_where_the_container_has_its_own_are_refused(self):
        for path in ("/", "/proc", "/etc/ssl/certs/", "/var/lib/aufs-csi", KUBELET, "/etc/containerd/certs.d"):
            for values in ({"localImages": [path]}, {"policy": {"content": {"localImages": [path]}}}):
                with self.assertRaisesRegex(Refused, "localImages: .* cannot be mounted"):
                    text(values)

    def test_registries(self):
        objects = render({"registries": {
            "allow": ["registry.example/team/*", "*.example.org"], "certsDirs": ["/etc/a", "/etc/b"],
            "caHostDirs": ["/etc/pki"], "credentialsSecret": "docker", "maxDownloads": 12,
            "maxDownloadsPerRegistry": 4,
            "credentialProviders": {"config": "/etc/kubernetes/providers.yaml", "binDir": "/usr/libexec/providers"}}})
        self.assertEqual(objects.option("--allow-registry"), ["registry.example/team/*", "*.example.org"])
        self.assertEqual(objects.option("--certs-dir"), ["/etc/a", "/etc/b"])
        self.assertEqual(objects.option("--max-downloads"), ["12"])
        self.assertEqual(objects.option("--max-downloads-per-registry"), ["4"])
        self.assertEqual(objects.option("--ca-bundle"), [])
        for path in ("/etc/a", "/etc/b", "/etc/pki", "/etc/kubernetes/providers.yaml", "/usr/libexec/providers"):
            mount, volume = objects.mount(path)
            self.assertTrue(mount["readOnly"], path)
            self.assertEqual(volume["hostPath"]["path"], path)
        mount, volume = objects.mount("/etc/aufs-csi/credentials")
        self.assertEqual(volume["secret"], {"secretName": "docker"})
        self.assertEqual(objects.option("--registry-credentials"), ["/etc/aufs-csi/credentials/.dockerconfigjson"])
        self.assertEqual(objects.option("--image-credential-provider-config"), ["/etc/kubernetes/providers.yaml"])
        self.assertEqual(objects.option("--image-credential-provider-bin-dir"), ["/usr/libexec/providers"])

    def test_certificates_of_a_config_map_replace_the_nodes(self):
        objects = render({"registries": {"caConfigMap": "company-ca"}})
        self.assertEqual(objects.mount("/etc/aufs-csi/ca")[1]["configMap"], {"name": "company-ca"})
        self.assertEqual(objects.option("--ca-bundle"), ["/etc/aufs-csi/ca/ca.crt"])
        self.assertNotIn("/etc/ssl/certs", [one["mountPath"] for one in objects.container()["volumeMounts"]])
        self.assertEqual(len(render({"registries": {"caHostDirs": []}}).pod["volumes"]), 7)

    def test_a_provider_without_programs_is_refused(self):
        with self.assertRaisesRegex(Refused, "binDir is needed"):
            text({"registries": {"credentialProviders": {"config": "/etc/x"}}})
        with self.assertRaisesRegex(Refused, "config is needed with binDir"):
            text({"registries": {"credentialProviders": {"binDir": "/usr/x"}}})

    def test_collection(self):
        objects = render({"collection": {"highPercent": 90, "lowPercent": 60, "maxStoreSize": "50Gi", "minAge": "1h",
                                         "maxAge": "720h"}, "prefetch": ["r.example/a:1", "r.example/b:1"]})
        self.assertEqual([objects.option(f"--{name}") for name in
                          ("gc-high", "gc-low", "max-store-size", "gc-min-age", "gc-max-age")],
                         [["90"], ["60"], ["50Gi"], ["1h"], ["720h"]])
        self.assertEqual(objects.option("--prefetch"), ["r.example/a:1", "r.example/b:1"])
        self.assertEqual(render({"collection": {"highPercent": 70}}).option("--gc-high"), ["70"])
        # The other one is the default.
        for values in ({"highPercent": 60}, {"lowPercent": 90}):
            with self.assertRaisesRegex(Refused, "lowPercent .* is more than collection.highPercent"):
                text({"collection": values})

    def test_policy(self):
        content = {"readOnlyOnly": True, "sizeLimit": {"maximum": "2Gi"}}
        objects = render({"policy": {"content": content}})
        config = objects.one("ConfigMap", "layers-aufs-csi-policy")
        self.assertEqual(yaml.safe_load(config["data"]["policy.yaml"]), content)
        self.assertEqual(objects.mount("/etc/aufs-csi/policy")[1]["configMap"], {"name": "layers-aufs-csi-policy"})
        self.assertEqual(objects.option("--policy"), ["/etc/aufs-csi/policy/policy.yaml"])
        # The program reads it again, so pods need not start again when it changes.
        other = render({"policy": {"content": {"maxImages": 1}}})
        self.assertEqual(objects.one("DaemonSet"), other.one("DaemonSet"))
        objects = render({"policy": {"existingConfigMap": "mine"}})
        self.assertEqual(objects.of("ConfigMap"), [])
        self.assertEqual(objects.mount("/etc/aufs-csi/policy")[1]["configMap"], {"name": "mine"})
        with self.assertRaisesRegex(Refused, "not both"):
            text({"policy": {"content": content, "existingConfigMap": "mine"}})

    def test_the_program_takes_the_policy_as_the_chart_writes_it(self):
        # All that docs/policy.md says, and sizes without a suffix.
        documented = (CHART.parent.parent / "docs/policy.md").read_text().split("```yaml\n")[1].split("```")[0]
        content = {**yaml.safe_load(documented), "memory": {"default": 1 << 30, "maximum": 1 << 40}}
        content["gc"]["low"] = "60%"
        text = render({"policy": {"content": content}}).one("ConfigMap")["data"]["policy.yaml"]
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "policy.yaml")
            for text, code in ((text, 0), (text + "maxImage: 4\n", 64)):
                with open(path, "w") as file:
                    file.write(text)
                done = subprocess.run([os.environ["AUFS_CSI"], "check", "--report-only", f"--policy={path}",
                                       f"--root={scratch}/store", f"--run-dir={scratch}/run"],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.assertEqual(done.returncode, code, done.stderr)

    def test_admission_policy(self):
        objects = render({"admissionPolicy": {"enabled": True}})
        policy = objects.one("ValidatingAdmissionPolicy", DRIVER)
        source = yaml.safe_load((CHART.parent.parent / "manifests/admission/policy.yaml").read_text())
        self.assertEqual(policy["spec"], source["spec"])
        self.assertEqual(policy["metadata"]["name"], source["metadata"]["name"])
        binding = objects.one("ValidatingAdmissionPolicyBinding")
        self.assertEqual(binding["spec"]["policyName"], DRIVER)
        self.assertEqual(binding["spec"]["validationActions"], ["Deny"])
        self.assertEqual(render().of("ValidatingAdmissionPolicy"), [])
        # It is of 1.30; where the cluster has none, it would fail.
        with self.assertRaisesRegex(Refused, "1.30"):
            text({"admissionPolicy": {"enabled": True}}, kube_version="1.29.0")
        objects = render({"admissionPolicy": {"enabled": True, "actions": ["Warn", "Audit"],
                                              "parameters": {"maxSizeLimit": "1Gi"}}})
        spec = objects.one("ValidatingAdmissionPolicyBinding")["spec"]
        self.assertEqual(spec["validationActions"], ["Warn", "Audit"])
        data = objects.one("ConfigMap", spec["paramRef"]["name"])["data"]
        self.assertEqual(spec["paramRef"]["namespace"], "plugins")
        defaults = yaml.safe_load_all((CHART.parent.parent / "manifests/admission/parameters.yaml").read_text())
        self.assertEqual(data, {**next(iter(defaults))["data"], "maxSizeLimit": "1Gi"})

    def test_without_events_it_has_no_rights_and_no_token(self):
        objects = render({"events": {"enabled": False}})
        self.assertIn("--no-events", objects.arguments)
        self.assertEqual(objects.of("ClusterRole") + objects.of("ClusterRoleBinding"), [])
        self.assertFalse(objects.pod["automountServiceAccountToken"])

    def test_startup_taint(self):
        objects = render({"startupTaint": {"enabled": True, "key": "example.org/wait"}, "events": {"enabled": False}})
        self.assertEqual(objects.option("--startup-taint"), ["example.org/wait"])
        self.assertEqual(objects.one("ClusterRole")["rules"], [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
            {"apiGroups": ["storage.k8s.io"], "resources": ["csinodes"], "verbs": ["get"]}])
        self.assertTrue(objects.pod["automountServiceAccountToken"])

    def test_log(self):
        objects = render({"log": {"format": "text", "level": "debug"}})
        self.assertEqual((objects.option("--log-format"), objects.option("--log-level")), (["text"], ["debug"]))

    def test_csidriver(self):
        self.assertEqual(render({"csiDriver": {"create": False}}).of("CSIDriver"), [])
        driver = render({"csiDriver": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}).one("CSIDriver")
        self.assertEqual((driver["metadata"]["labels"]["a"], driver["metadata"]["annotations"]), ("b", {"c": "d"}))

    def test_openshift(self):
        label = "security.openshift.io/csi-ephemeral-volume-profile"
        driver = lambda profile: render({"openshift": {"csiEphemeralVolumeProfile": profile}}).one("CSIDriver")
        self.assertEqual(driver("privileged")["metadata"]["labels"][label], "privileged")
        self.assertNotIn(label, driver("")["metadata"]["labels"])
        binding = render({"openshift": {"scc": {"enabled": True}}}).one("RoleBinding")
        self.assertEqual(binding["roleRef"]["name"], "system:openshift:scc:privileged")
        self.assertEqual(binding["subjects"][0]["name"], "layers-aufs-csi")

    def test_service_account(self):
        objects = render({"serviceAccount": {"create": False, "name": "mine"}})
        self.assertEqual(objects.of("ServiceAccount"), [])
        self.assertEqual(objects.pod["serviceAccountName"], "mine")
        self.assertEqual(objects.one("ClusterRoleBinding")["subjects"][0]["name"], "mine")
        objects = render({"serviceAccount": {"name": "named", "annotations": {"role": "arn"}}})
        self.assertEqual(objects.one("ServiceAccount", "named")["metadata"]["annotations"], {"role": "arn"})
        self.assertEqual(render({"rbac": {"create": False}}).of("ClusterRole"), [])

    def test_scheduling(self):
        objects = render({
            "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "a", "operator": "Exists"}],
            "priorityClassName": "mine", "updateStrategy": {"maxUnavailable": 2}, "revisionHistoryLimit": 7,
            "terminationGracePeriodSeconds": 60, "resources": {"limits": {"cpu": "1"}}})
        self.assertEqual(objects.pod["nodeSelector"], {"kubernetes.io/os": "linux", "disk": "fast"})
        self.assertEqual(objects.one("Pod")["spec"]["nodeSelector"], {"disk": "fast"})
        self.assertEqual(objects.pod["tolerations"], [{"key": "a", "operator": "Exists"}])
        self.assertEqual(objects.pod["priorityClassName"], "mine")
        self.assertEqual(objects.pod["terminationGracePeriodSeconds"], 60)
        spec = objects.one("DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"]["rollingUpdate"], {"maxSurge": 0, "maxUnavailable": 2})
        self.assertEqual(spec["revisionHistoryLimit"], 7)
        self.assertEqual(objects.container()["resources"]["limits"], {"cpu": "1"})
        self.assertNotIn("tolerations", render({"tolerations": []}).pod)

    def test_labels_and_annotations(self):
        daemon_set = render({"daemonSetAnnotations": {"a": "1"}, "podAnnotations": {"b": "2"},
                             "podLabels": {"c": "3"}}).one("DaemonSet")
        self.assertEqual(daemon_set["metadata"]["annotations"], {"a": "1"})
        self.assertEqual(daemon_set["spec"]["template"]["metadata"]["annotations"]["b"], "2")
        self.assertEqual(daemon_set["spec"]["template"]["metadata"]["labels"]["c"], "3")

    def test_a_network_of_its_own(self):
        objects = render({"hostNetwork": False, "dnsPolicy": "ClusterFirst"})
        self.assertFalse(objects.pod["hostNetwork"])
        self.assertEqual(objects.pod["dnsPolicy"], "ClusterFirst")
        # kubelet then asks at the pod's address.
        self.assertEqual(objects.option("--http-address"), ["0.0.0.0:9809"])
        self.assertNotIn("host", objects.container()["livenessProbe"]["httpGet"])

    def test_http(self):
        for address, listens, asks in (("", "127.0.0.1:8000", "127.0.0.1"), ("0.0.0.0", "0.0.0.0:8000", "127.0.0.1"),
                                       ("::", "[::]:8000", "::1"), ("10.0.0.7", "10.0.0.7:8000", "10.0.0.7")):
            objects = render({"http": {"port": 8000, "address": address}})
            self.assertEqual(objects.option("--http-address"), [listens])
            for probe in ("livenessProbe", "readinessProbe"):
                self.assertEqual(objects.container()[probe]["httpGet"]["host"], asks)
        objects = render({"livenessProbe": {"periodSeconds": 99}, "readinessProbe": {"failureThreshold": 9}})
        self.assertEqual(objects.container()["livenessProbe"]["periodSeconds"], 99)
        self.assertEqual(objects.container()["readinessProbe"]["failureThreshold"], 9)

    def test_more_of_everything(self):
        objects = render({
            "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "envFrom": [{"configMapRef": {"name": "x"}}], "extraArgs": ["--credential-memory=1h"],
            "extraVolumes": [{"name": "e", "emptyDir": {}}], "extraVolumeMounts": [{"name": "e", "mountPath": "/e"}]})
        self.assertIn({"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, objects.container()["env"])
        self.assertEqual(objects.container()["envFrom"], [{"configMapRef": {"name": "x"}}])
        self.assertEqual(objects.arguments[-1], "--credential-memory=1h")
        self.assertEqual(objects.mount("/e")[1], {"name": "e", "emptyDir": {}})

    def test_pod_monitor(self):
        objects = render({"metrics": {"podMonitor": {"enabled": True, "labels": {"p": "q"}, "interval": "1m"}}})
        monitor = objects.one("PodMonitor")
        self.assertEqual(monitor["metadata"]["labels"]["p"], "q")
        endpoint = monitor["spec"]["podMetricsEndpoints"][0]
        self.assertEqual((endpoint["port"], endpoint["path"], endpoint["interval"]), ("http", "/metrics", "1m"))
        labels = objects.one("DaemonSet")["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(monitor["spec"]["selector"]["matchLabels"].items(), labels.items())
        # Nobody can scrape loopback.
        self.assertEqual(objects.option("--http-address"), ["0.0.0.0:9809"])

    def test_rules_and_dashboard(self):
        objects = render({"metrics": {"prometheusRule": {"enabled": True, "labels": {"r": "s"}},
                                      "dashboard": {"enabled": True, "annotations": {"folder": "Storage"}}}})
        rule = objects.one("PrometheusRule")
        self.assertEqual(rule["spec"], yaml.safe_load((CHART / "files/alerts.yaml").read_text()))
        self.assertEqual(rule["metadata"]["labels"]["r"], "s")
        config = objects.one("ConfigMap", "layers-aufs-csi-dashboard")
        self.assertEqual(json.loads(config["data"]["aufs-csi.json"]), json.loads((CHART / "files/dashboard.json").read_text()))
        self.assertEqual(config["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(config["metadata"]["annotations"], {"folder": "Storage"})

    def test_network_policy(self):
        peers = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
        spec = render({"networkPolicy": {"enabled": True, "from": peers}}).one("NetworkPolicy")["spec"]
        self.assertEqual(spec["ingress"], [{"ports": [{"protocol": "TCP", "port": "http"}], "from": peers}])
        self.assertEqual(spec["egress"], [{}])
        self.assertNotIn("from", render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"]["ingress"][0])

    def test_registrar_as_a_sidecar(self):
        objects = render({"sidecars": {"nodeDriverRegistrar": {"enabled": True, "image": "r:1"}}})
        self.assertIn("--no-registration", objects.arguments)
        registrar = objects.container("node-driver-registrar")
        self.assertEqual(registrar["image"], "r:1")
        # kubelet's name of the socket, not the container's.
        self.assertIn(f"--kubelet-registration-path={KUBELET}/plugins/{DRIVER}/csi.sock", registrar["args"])
        self.assertEqual(objects.mount("/csi", "node-driver-registrar")[1]["name"], "plugin")
        self.assertEqual(objects.mount("/registration", "node-driver-registrar")[1]["name"], "registry")

    def test_liveness_probe_as_a_sidecar(self):
        objects = render({"sidecars": {"livenessProbe": {"enabled": True, "image": "l:1", "port": 9000}}})
        sidecar = objects.container("liveness-probe")
        self.assertEqual(sidecar["args"], ["--csi-address=/csi/csi.sock", "--http-endpoint=127.0.0.1:9000"])
        self.assertEqual(objects.container()["livenessProbe"]["httpGet"],
                         {"host": "127.0.0.1", "port": 9000, "path": "/healthz"})
        objects = render({"hostNetwork": False, "sidecars": {"livenessProbe": {"enabled": True}}})
        self.assertIn("--http-endpoint=:9808", objects.container("liveness-probe")["args"])

    def test_a_long_recovery_is_not_killed_by_the_sidecars_probe(self):
        probe = {"enabled": True, "port": 9000}
        container = render({"sidecars": {"livenessProbe": probe}}).container()
        startup = container["startupProbe"]
        # It asks what the liveness probe asks: that waits until this one succeeds.
        self.assertEqual(startup["httpGet"], container["livenessProbe"]["httpGet"])
        self.assertEqual(startup["periodSeconds"] * startup["failureThreshold"], 600)
        container = render({"hostNetwork": False, "sidecars": {"livenessProbe": probe},
                            "startupProbe": {"failureThreshold": 7}}).container()
        self.assertEqual(container["startupProbe"]["failureThreshold"], 7)
        self.assertEqual(container["startupProbe"]["httpGet"], {"port": 9000, "path": "/healthz"})
        # The plugin's own is there during recovery.
        self.assertNotIn("startupProbe", render().container())

    def test_test_pod(self):
        spec = render({"test": {"image": "r/x:1", "command": ["/volume/x"], "imagePullSecret": "s"}}).one("Pod")["spec"]
        self.assertEqual(spec["volumes"][0]["csi"], {
            "driver": DRIVER, "nodePublishSecretRef": {"name": "s"}, "volumeAttributes": {"image": "r/x:1"}})
        self.assertEqual(spec["containers"][0]["command"], ["/volume/x"])


def node_terms(pod):
    rules = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return rules["nodeSelectorTerms"]


# Values that switch on everything that can be switched on together.
EVERYTHING = {
    "namespace": {"create": True}, "commonLabels": {"a": "b"}, "aufsOnly": {"enabled": True},
    "localImages": ["/srv/images"], "prefetch": ["x.example/a"], "imagePullSecrets": [{"name": "pull"}],
    "registries": {"allow": ["x.example"], "credentialsSecret": "s", "caConfigMap": "c",
                   "credentialProviders": {"config": "/etc/p.yaml", "binDir": "/usr/p"}},
    "policy": {"content": {"maxImages": 4, "localImages": ["/srv/policy"]}}, "startupTaint": {"enabled": True},
    "openshift": {"scc": {"enabled": True}},
    "metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}},
    "networkPolicy": {"enabled": True},
    "sidecars": {"nodeDriverRegistrar": {"enabled": True}, "livenessProbe": {"enabled": True}},
}


class Upgrades(unittest.TestCase):
    def test_no_value_changes_the_driver(self):
        self.assertEqual(render(EVERYTHING).one("CSIDriver")["spec"], CSIDRIVER)

    def test_no_value_changes_a_selector(self):
        selector = lambda objects: objects.one("DaemonSet")["spec"]["selector"]
        self.assertEqual(selector(render(EVERYTHING)), selector(render()))

    def test_what_a_pod_mounts_from_the_node_has_a_name_of_its_own(self):
        for objects in (render(), render(EVERYTHING)):
            names = [volume["name"] for volume in objects.pod["volumes"]]
            self.assertEqual(len(names), len(set(names)))
            used = {mount["name"] for kind in ("containers", "initContainers") for container in objects.pod[kind]
                    for mount in container["volumeMounts"]}
            self.assertEqual(used, set(names))

    def test_the_oldest_and_the_newest_cluster(self):
        self.assertEqual(len(render(kube_version="1.25.0").all), len(render(kube_version="1.37.0").all))
        with self.assertRaisesRegex(Refused, "incompatible"):
            text(kube_version="1.24.17")


class Removal(unittest.TestCase):
    """Whoever removes the plugin is told what kubelet may have made for it."""

    @staticmethod
    def made(values):
        hosts = [one["hostPath"] for one in render(values).pod["volumes"] if "hostPath" in one]
        return {host["path"] for host in hosts if host.get("type") == "DirectoryOrCreate"}

    def test_notes_name_every_directory(self):
        lists = {"localImages": ["/srv/images"], "policy": {"content": {"localImages": ["/srv/policy"]}},
                 "registries": {"certsDirs": ["/etc/a"], "caHostDirs": ["/etc/pki"]},
                 "store": {"hostPath": "/data/store", "runHostPath": "/run/x"}, "kubeletRootDir": "/k"}
        for values, count in (({}, 5), (lists, 7), (EVERYTHING, 6),
                              ({"registries": {"certsDirs": [], "caHostDirs": []}}, 3)):
            made = self.made(values)
            self.assertEqual(len(made), count)
            words = re.findall(r"/[^\s;,]+", notes(values))
            for path in made:
                self.assertIn(path, words)
            # And nothing that is not there.
            self.assertEqual("/etc/ssl/certs" in words, "/etc/ssl/certs" in made)

    def test_the_manual_names_every_directory(self):
        page = (CHART.parent.parent / "docs/operations.md").read_text()
        section = page.split("\n## Removal\n")[1].split("\n## ")[0]
        for path in self.made({}):
            self.assertIn(f"`{path.removeprefix(KUBELET + '/')}`", section)
        for value in ("registries.certsDirs", "registries.caHostDirs", "localImages", "policy.content.localImages"):
            self.assertIn(f"`{value}`", section)


class Schema(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.schema = json.loads((CHART / "values.schema.json").read_text())
        cls.values = yaml.safe_load((CHART / "values.yaml").read_text())

    def test_a_key_that_does_not_exist_is_refused_at_every_level(self):
        def misspelt(schema, path=()):
            properties = schema.get("properties", {})
            if schema.get("additionalProperties") is False:
                yield path
            for name, part in properties.items():
                yield from misspelt(part, path + (name,))

        places = list(misspelt(self.schema))
        self.assertGreater(len(places), 20)
        for place in places:
            values = leaf = {}
            for name in place:
                leaf[name] = {}
                leaf = leaf[name]
            leaf["enbaled"] = True
            with self.assertRaisesRegex(Refused, "enbaled", msg=str(place)):
                text(values)

    def test_values_and_schema_have_the_same_keys(self):
        def keys(value, schema, path=""):
            properties = schema.get("properties")
            if properties is None or not isinstance(value, dict) or schema.get("additionalProperties") is not False:
                return
            own = set(properties) - ({"global"} if not path else set())
            # What Kubernetes has names for need not be all given here.
            if path.endswith(("resources", "Probe")) and not path.startswith(".sidecars"):
                own &= set(value)
            # A policy that says nothing is another one than none.
            if path.endswith("resources") or path == ".policy.content":
                own = set(value)
            self.assertEqual(set(value), own, path or "top")
            for name, part in value.items():
                keys(part, properties[name], f"{path}.{name}")

        keys(self.values, self.schema)

    def test_values_that_cannot_be_meant_are_refused(self):
        for values in (
            {"union": "btrfs"}, {"check": {"mode": "refuse"}}, {"kubeletRootDir": "var/lib/kubelet"},
            {"image": {"digest": "sha256:1"}}, {"image": {"pullPolicy": "Sometimes"}},
            {"updateStrategy": {"maxUnavailable": 0}}, {"updateStrategy": {"maxUnavailable": "0%"}},
            {"http": {"port": 0}}, {"http": {"address": "localhost"}}, {"hostNetwork": "yes"},
            {"registries": {"maxDownloads": 0}}, {"terminationGracePeriodSeconds": 5},
            {"admissionPolicy": {"actions": ["Deny", "Warn"]}}, {"admissionPolicy": {"actions": ["Warn", "Audit", "Deny"]}},
            {"admissionPolicy": {"actions": ["Deny", "Deny"]}},
            {"policy": {"content": {"allowedUnions": []}}}, {"policy": {"content": {"maxImages": 33}}},
            {"policy": {"content": {"gc": {"high": "85"}}}}, {"policy": {"content": {"localImages": ["images"]}}},
            {"log": {"format": "xml"}}, {"startupTaint": {"key": "not a key"}}, {"test": {"command": []}},
        ):
            with self.assertRaises(Refused, msg=str(values)):
                text(values)

    def test_the_policy_has_the_keys_that_the_program_has(self):
        source = (CHART.parent.parent / "src/config/policy.rs").read_text()
        found = re.findall(r"const (\w*KEYS): \[&str; (\d+)\] = \[([^\]]*)\];", source)
        keys = {name: re.findall('"([^"]+)"', listed) for name, _, listed in found}
        for name, length, _ in found:
            self.assertEqual(len(keys[name]), int(length))
        self.assertEqual(set(keys), {"KEYS", "SIZE_KEYS", "GC_KEYS"})
        content = self.schema["properties"]["policy"]["properties"]["content"]
        self.assertEqual(set(content["properties"]), set(keys["KEYS"]))
        for name, part in {"sizeLimit": "SIZE_KEYS", "memory": "SIZE_KEYS", "gc": "GC_KEYS"}.items():
            self.assertEqual(set(content["properties"][name]["properties"]), set(keys[part]), name)
            self.assertFalse(content["properties"][name]["additionalProperties"])

    def test_every_value_is_explained(self):
        block = []
        for line in (CHART / "values.yaml").read_text().splitlines() + ["# end"]:
            # Values that belong together stand below one comment.
            if line.startswith("#") and block and not block[-1].startswith("#"):
                block = []
            block.append(line)
            if line[:1].isalpha():
                self.assertTrue(block[0].startswith("#"), line)


class Program(unittest.TestCase):
    """The chart uses options that the program has."""

    def test_options(self):
        program = os.environ["AUFS_CSI"]
        for verb, values in (("node", EVERYTHING), ("check", {}), ("check", {"aufsOnly": {"enabled": True}})):
            objects = render(values)
            known = subprocess.run([program, verb, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
            container = objects.container("plugin" if verb == "node" else "check")
            self.assertEqual(container["args"][0], verb)
            for argument in container["args"][1:]:
                option = argument.split("=")[0]
                self.assertIn(f" {option} ", known.replace("\n", " "), verb)

    def test_version(self):
        program = os.environ["AUFS_CSI"]
        said = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
        self.assertEqual(said.split()[1], version())


if __name__ == "__main__":
    unittest.main()
