"""What the documentation names is there: files, values of the chart, commands of
the program. tests/documented.rs runs the commands."""

import json
import os
import pathlib
import re
import subprocess
import unittest

from rendering import CHART, text as rendered

ROOT = CHART.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", ROOT / "SECURITY.md",
         CHART / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages):
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language in languages:
                yield page.name, text


def has_value(schema, path):
    for name in path:
        if "properties" not in schema:
            return schema.get("additionalProperties", True) is not False
        if name not in schema["properties"]:
            return False
        schema = schema["properties"][name]
    return True


class Documents(unittest.TestCase):
    def test_links_lead_to_files(self):
        for page in PAGES:
            for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")

    def test_shell_can_be_read_and_names_files_that_exist(self):
        count = 0
        for page, text in blocks("sh"):
            done = subprocess.run(["bash", "-n"], input=text, text=True, stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 0, f"{page}: {done.stderr}\n{text}")
            for path in re.findall(r"(?<![\w/.])((?:charts|manifests|e2e|scripts)/[\w./-]+)", text):
                self.assertTrue((ROOT / path).exists(), f"{page}: {path}")
            count += 1
        self.assertGreater(count, 8)

    def test_values_of_the_chart_exist(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        for page in PAGES:
            text = page.read_text()
            for setting in re.findall(r"--set[= ]'?([A-Za-z.]+)=", text) + re.findall(r"`([a-z][A-Za-z]+(?:\.[A-Za-z]+)+)(?:=[^`]*)?`", text):
                path = setting.split(".")
                # Other things are written so, too; a value begins as one does.
                if path[0] in schema["properties"] and path[-1] not in ("md", "json", "yaml", "rs", "sh", "lock"):
                    self.assertTrue(has_value(schema, path), f"{page.name}: {setting}")

    def test_settings_of_distributions_do_something(self):
        table = (CHART / "README.md").read_text().split("| distribution | setting |\n|---|---|\n")[1].split("\n\n")[0]
        rows = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", table, re.MULTILINE))
        self.assertEqual(len(rows), len(table.splitlines()))
        count = 0
        for name, cell in rows.items():
            settings = re.findall(r"`([^`]+)`", cell)
            self.assertTrue(settings or cell == "none", name)
            before = rendered()
            for number, setting in enumerate(settings, 1):
                # One after the other: each has its own effect, beside the others.
                words = [word for one in settings[:number] for word in ("--set", one)]
                after = rendered(None, *words)
                self.assertNotEqual(after, before, f"{name}: {setting}")
                value = setting.split("=", 1)[1].strip("{}")
                self.assertIn(value, after, f"{name}: {setting}")
                before = after
                count += 1
        self.assertGreater(count, 7)

    def test_verbs_and_options_of_the_program_exist(self):
        known = subprocess.run([os.environ["AUFS_CSI"], "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
        verbs = set(re.findall(r"^  ([a-z]+) ", known.split("Commands:")[1].split("Options:")[0], re.MULTILINE))
        self.assertIn("purge", verbs)
        options = set(re.findall(r"--[a-z][a-z-]+", known))
        for verb in verbs - {"help"}:
            said = subprocess.run([os.environ["AUFS_CSI"], verb, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
            options |= set(re.findall(r"--[a-z][a-z-]+", said))
        for page, text in blocks("sh", "console"):
            for words in re.findall(r"(?:^# |^|-- /|--rootless )aufs-csi ([^|#\n]*)", text, re.MULTILINE):
                verb = re.findall(r"(?<![\w:/.-])[a-z]+(?![\w:/.-])", words)
                self.assertTrue(not verb or verb[0] in verbs, f"{page}: aufs-csi {words}")
                for option in re.findall(r"--[a-z][a-z-]+", words):
                    self.assertIn(option, options, f"{page}: aufs-csi {words}")


if __name__ == "__main__":
    unittest.main()
