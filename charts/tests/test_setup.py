"""scripts/setup.sh finds what is missing, on a machine that has next to nothing."""

import pathlib
import subprocess
import tempfile
import unittest

from rendering import CHART

ROOT = CHART.parent.parent


def asked_for(what, python):
    """The packages it names where there is no apt-get to install them. `python`
    is a shell script, the machine's python3."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in (("cargo", "exit 0"), ("python3", python), ("id", "echo 0")):
            program = pathlib.Path(scratch, name)
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
        done = subprocess.run(["/bin/bash", "scripts/setup.sh", what], cwd=ROOT, env={"PATH": scratch},
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 69, done
        return done.stderr.splitlines()[-1].split()


class Setup(unittest.TestCase):
    def test_a_python_without_modules_does_not_count(self):
        self.assertIn("python3", asked_for("image", "exit 1"))
        chart = asked_for("chart", "exit 1")
        self.assertIn("python3", chart)
        self.assertIn("python3-yaml", chart)

    def test_a_python_with_modules_does(self):
        for what in ("image", "chart"):
            self.assertFalse([one for one in asked_for(what, "exit 0") if one.startswith("python3")])

    def test_what_tests_the_image_is_installed(self):
        # test-image.sh and what makes the image read JSON.
        recipe = (ROOT / "Makefile").read_text().split("\ntest-image:")[1].split("\n\n")[0]
        self.assertIn("scripts/setup.sh image", recipe)


if __name__ == "__main__":
    unittest.main()
