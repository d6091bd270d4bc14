"""Renders the chart with helm, for the tests of it."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "aufs-csi"
HELM = os.environ["HELM"]
# helm has no idea of a cluster while it renders.
KUBE_VERSION = os.environ.get("KUBE_VERSION", "1.36.2")


class Refused(Exception):
    """helm does not take these values; its words."""


class UniqueKeys(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
    """YAML in which a key that is there twice is an error, as for the API server."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def text(values=None, *more, namespace="plugins", release="layers", kube_version=KUBE_VERSION, chart=CHART):
    command = [HELM, "template", release, str(chart), "--namespace", namespace,
               "--kube-version", kube_version, "--values", "-", *more]
    done = subprocess.run(command, input=json.dumps(values or {}), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def notes(values=None):
    """What helm says after an installation, which `helm template` leaves out."""
    with tempfile.TemporaryDirectory() as scratch:
        chart = pathlib.Path(scratch, CHART.name)
        shutil.copytree(CHART, chart)
        said = chart / "templates/NOTES.txt"
        (chart / "templates/notes.yaml").write_text(
            '{{- define "notes" }}' + said.read_text() + '{{ end }}\nnotes: {{ include "notes" . | toJson }}\n')
        rendered = text(values, "--show-only", "templates/notes.yaml", chart=chart)
        return yaml.safe_load(rendered)["notes"]


class Objects:
    """What the chart makes of some values."""

    def __init__(self, rendered):
        self.all = [one for one in yaml.load_all(rendered, Loader=UniqueKeys) if one]

    def of(self, kind):
        return [one for one in self.all if one["kind"] == kind]

    def one(self, kind, name=None):
        found = [one for one in self.of(kind) if name in (None, one["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
        return found[0]

    @functools.cached_property
    def pod(self):
        return self.one("DaemonSet")["spec"]["template"]["spec"]

    def container(self, name="plugin"):
        every = self.pod["containers"] + self.pod.get("initContainers", [])
        found = [one for one in every if one["name"] == name]
        assert len(found) == 1, f"{len(found)} containers {name}"
        return found[0]

    @property
    def arguments(self):
        return self.container()["args"]

    def option(self, name):
        """All values of an option of the plugin, by an argument or its variable."""
        variable = "AUFS_CSI_" + name.lstrip("-").replace("-", "_").upper()
        return [arg.split("=", 1)[1] for arg in self.arguments if arg.startswith(f"{name}=")] + [
            one["value"] for one in self.container()["env"] if one["name"] == variable]

    def mount(self, path, container="plugin"):
        """A mount, and the volume that is mounted."""
        mounts = [one for one in self.container(container)["volumeMounts"] if one["mountPath"] == path]
        assert len(mounts) == 1, f"{len(mounts)} mounts at {path}"
        volumes = [one for one in self.pod["volumes"] if one["name"] == mounts[0]["name"]]
        assert len(volumes) == 1, f"{len(volumes)} volumes {mounts[0]['name']}"
        return mounts[0], volumes[0]


def render(values=None, *more, **settings):
    return Objects(text(values, *more, **settings))
