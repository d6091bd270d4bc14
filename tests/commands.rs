//! The command line as a person uses it: what it refuses, with which exit code,
//! and that what is in the way is left as it is.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use aufs_csi::host::linux::LinuxHost;
use aufs_csi::host::{Host, MountCall};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::entry::file;
use support::node::TestNode;
use support::oci_layout::OciLayout;
use support::tarball::{Compression, tars};

/// A place for a store that only the program touches.
struct Place(TestNode);

impl Place {
    fn new() -> Self {
        Place(TestNode::new())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image with one file that says which one it is.
    fn image(&self, dir: &Path, text: &str) {
        let layers = [vec![file("which", text)]];
        OciLayout::new(dir).image("latest", &tars(&layers), Compression::Gzip);
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.path(name);
        fs::create_dir_all(&target).unwrap();
        target
    }

    #[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
    fn run_in(&self, dir: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_aufs-csi"))
            .env_clear()
            .env("AUFS_CSI_ROOT", self.path("store"))
            .env("AUFS_CSI_RUN_DIR", self.path("run"))
            .current_dir(dir)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_in(self.0.path(), arguments)
    }

    /// Exit code and error text.
    fn code(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a failed test has mounted.
        let list = self.run(&["volumes", "--output", "json"]).stdout;
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap_or_default();
        for volume in list.as_array().into_iter().flatten() {
            let id = volume["volume_id"].as_str().unwrap_or_default();
            self.run(&["unmount", id]);
        }
    }
}

/// As somebody with another program.
fn unmount(target: &Path) {
    LinuxHost.unmount(target).unwrap();
}

fn bind(source: &Path, target: &Path) {
    let call = MountCall::Bind {
        source: source.to_owned(),
        beneath: None,
    };
    LinuxHost.mount(target, &call).unwrap();
}

#[test]
fn what_is_wrong_has_its_exit_code_and_leaves_all_as_it_was() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    place.image(&place.path("other"), "two");
    let used = place.target("used");
    let full = place.target("full");
    let free = place.target("free");
    fs::write(full.join("theirs"), "").unwrap();
    let [used, full, free] = [&used, &full, &free].map(|path| path.to_str().unwrap());
    place.good(&["mount", "oci:image:latest", used]);
    // Again it changes nothing.
    place.good(&["mount", "oci:image:latest", used]);
    for (arguments, code, words) in [
        (
            &["mount", "oci:other:latest", used][..],
            73,
            "other attributes",
        ),
        (
            &["mount", "--volume-id", "b", "oci:image:latest", used],
            73,
            "mount point already",
        ),
        (
            &["mount", "--volume-id", used, "oci:image:latest", free],
            73,
            "already",
        ),
        (&["mount", "oci:image:latest", full], 73, "not empty"),
        (&["mount", "oci:image:latest", "absent"], 66, "absent"),
        (&["mount", "oci:image:nope", free], 66, "nope"),
        (&["mount", "oci:nowhere", free], 66, "nowhere"),
        (&["mount", "oci:", free], 64, "image name"),
        // Nobody listens there, now.
        (
            &["mount", "docker://127.0.0.1:1/app:1", free],
            75,
            "cannot reach 127.0.0.1:1",
        ),
        (
            &["mount", "--union", "aufs", "oci:image:latest", free],
            69,
            "aufs",
        ),
        (&["unmount", free], 66, "no volume"),
        (&["unmount", "b"], 66, "no volume"),
        (&["diff", "b"], 66, "no volume"),
        (&["export", "b", "--file", "x.tar"], 66, "no volume"),
        (
            &["mount", "--frobnicate", "oci:image:latest", free],
            64,
            "--frobnicate",
        ),
    ] {
        if arguments.contains(&"aufs") && kernel_has_aufs() {
            continue;
        }
        let (found, text) = place.code(arguments);
        assert_eq!(found, code, "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    assert_eq!(fs::read_to_string(place.path("used/which")).unwrap(), "one");
    assert!(fs::read_dir(free).unwrap().next().is_none());
    let list = place.good(&["volumes", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0]["owner"], "command");
    place.good(&["unmount", used]);
}

#[test]
fn several_images_are_one_volume() {
    let place = Place::new();
    for name in ["one", "two"] {
        place.image(&place.path(name), name);
    }
    let target = place.target("target");
    let at = target.to_str().unwrap();
    let (one, two) = ("oci:one:latest", "oci:two:latest");
    place.good(&["mount", two, one, at]);
    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "two");
    place.good(&["mount", two, one, at]);
    assert_eq!(place.code(&["mount", one, two, at]).0, 73);
    assert_eq!(place.code(&["mount", two, at]).0, 73);
    let list = place.good(&["volumes", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let images = list[0]["images"].as_array().unwrap();
    let names: Vec<&str> = images
        .iter()
        .map(|image| image["image"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with("/two:latest"), "{names:?}");
    assert!(place.good(&["volumes"]).contains(&names.join(",")));
    let used = place.good(&["images", "--output", "json"]);
    let used: serde_json::Value = serde_json::from_str(&used).unwrap();
    for image in used.as_array().unwrap() {
        assert_eq!(image["volumes"][0], at, "{used}");
    }
    let (code, text) = place.code(&["mount", "--volume-id", "b", two, "oci:nowhere", at]);
    assert_eq!(code, 73, "{text}");
    place.good(&["unmount", at]);
    let (code, text) = place.code(&["mount", two, "oci:nowhere", at]);
    assert_eq!(code, 66, "{text}");
    assert!(text.contains("nowhere"), "{text}");
}

fn kernel_has_aufs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    known
        .lines()
        .any(|line| line.trim_end().ends_with("\taufs"))
}

#[test]
fn a_relative_image_is_another_one_elsewhere() {
    let place = Place::new();
    for dir in ["a", "b"] {
        fs::create_dir(place.path(dir)).unwrap();
        place.image(&place.path(dir).join("image"), dir);
    }
    let target = place.target("target");
    let arguments = ["mount", "oci:image:latest", target.to_str().unwrap()];
    assert!(place.run_in(&place.path("a"), &arguments).status.success());
    let again = place.run_in(&place.path("b"), &arguments);
    assert_eq!(again.status.code(), Some(73));
    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "a");
    place.good(&["unmount", target.to_str().unwrap()]);
}

#[test]
fn a_volume_goes_by_its_id_where_its_target_is_gone() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    place.good(&["mount", "--volume-id", "mine", "oci:image:latest", at]);
    unmount(&target);
    fs::remove_dir(&target).unwrap();
    place.good(&["unmount", "mine"]);
    assert_eq!(place.good(&["volumes", "--output", "json"]).trim(), "[]");

    place.target("target");
    place.good(&["mount", "oci:image:latest", at]);
    unmount(&target);
    fs::remove_dir(&target).unwrap();
    place.good(&["unmount", at]);
    assert_eq!(place.good(&["volumes", "--output", "json"]).trim(), "[]");
}

#[test]
fn a_limit_is_given_by_options() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    let (code, text) = place.code(&["mount", "--medium", "memory", "oci:image:latest", at]);
    assert_ne!(code, 0, "{text}");
    assert!(text.contains("give it a sizeLimit"), "{text}");
    for medium in ["disk", "memory"] {
        let mount = [
            "mount",
            "--medium",
            medium,
            "--size-limit",
            "1Mi",
            "oci:image:latest",
            at,
        ];
        place.good(&mount);
        let error = fs::write(target.join("large"), vec![1; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{medium}");
        // The same again is the same volume, and another limit another one.
        place.good(&mount);
        let (code, text) = place.code(&["mount", "oci:image:latest", at]);
        assert_ne!(code, 0, "{text}");
        place.good(&["unmount", at]);
        assert_eq!(place.good(&["volumes", "--output", "json"]).trim(), "[]");
    }
}

#[test]
fn what_covers_a_volume_is_left_alone_and_named() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    place.good(&["mount", "oci:image:latest", at]);
    let theirs = place.target("theirs");
    fs::write(theirs.join("precious"), "").unwrap();
    bind(&theirs, &target);
    let (code, text) = place.code(&["unmount", at]);
    assert_eq!(code, 73, "{text}");
    assert!(text.contains("unmount that first"), "{text}");
    // Nor is it taken for the volume.
    let (code, text) = place.code(&["mount", "oci:image:latest", at]);
    assert_ne!(code, 0, "{text}");
    assert!(target.join("precious").exists());
    unmount(&target);
    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "one");
    place.good(&["unmount", at]);
}

#[test]
fn a_volume_that_somebody_unmounted_comes_back_with_what_was_written() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    place.good(&["mount", "oci:image:latest", at]);
    fs::write(target.join("mine"), "written").unwrap();
    fs::remove_file(target.join("which")).unwrap();
    unmount(&target);
    place.good(&["mount", "oci:image:latest", at]);
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "written");
    assert!(!target.join("which").exists());
    place.good(&["unmount", at]);
    assert_eq!(place.good(&["volumes", "--output", "json"]).trim(), "[]");
}

#[test]
fn a_damaged_record_does_not_hide_the_other_volumes() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    place.good(&["mount", "oci:image:latest", at]);
    let damaged = place.path("store/volumes/00000000000000000000000000000000");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("record.json"), "").unwrap();
    let output = place.run(&["volumes", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[0]["volume_id"], at);
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged"));
    place.good(&["images"]);
    place.good(&["unmount", at]);
}

#[test]
fn check_reports_also_where_there_can_be_no_store() {
    let place = Place::new();
    let output = place.run(&["check", "--root", "/etc", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"][0]["subject"], "store");
    assert_eq!(report["findings"][0]["verdict"], "failed");
    let report = place.good(&["check", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let subjects: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    for subject in [
        "store",
        "disk",
        "quota",
        "sizeLimit",
        "sizeLimit in memory",
        "kernel",
        "aufs",
        "overlay",
    ] {
        assert!(
            subjects.iter().any(|found| found["subject"] == subject),
            "{subject}: {report}"
        );
    }
}

#[test]
fn check_fails_if_what_is_wanted_does_not_work_unless_only_the_report_counts() {
    let place = Place::new();
    let report = |arguments: &[&str]| {
        let output = place.run(arguments);
        let mut report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for finding in report["findings"].as_array_mut().unwrap() {
            // How much is free changes between two looks.
            if finding["subject"] == "disk" {
                finding["detail"].take();
            }
        }
        (output.status.code().unwrap(), report)
    };
    for union in ["aufs", "overlay"] {
        let works = std::fs::read_to_string("/proc/filesystems")
            .unwrap()
            .lines()
            .any(|line| line.ends_with(union));
        let (code, found) = report(&["check", "--union", union, "--output", "json"]);
        assert_eq!(code, i32::from(!works), "{found}");
        let verdict = |finding: &&serde_json::Value| finding["subject"] == union;
        let finding = found["findings"].as_array().unwrap().iter().find(verdict);
        let verdict = if works { "ok" } else { "failed" };
        assert_eq!(finding.unwrap()["verdict"], verdict, "{found}");
        let arguments = ["check", "--union", union, "--report-only", "-o", "json"];
        assert_eq!(report(&arguments), (0, found));
    }
}

/// kubelet's directory with what the plugin leaves in it, and something else.
fn kubelet_of(place: &Place) -> PathBuf {
    let kubelet = place.target("kubelet");
    for dir in [
        "pods",
        "plugins_registry",
        "plugins/aufs-csi.dev",
        "plugins/other",
    ] {
        fs::create_dir_all(kubelet.join(dir)).unwrap();
    }
    // As a plugin that was killed leaves them: nobody listens.
    for socket in [
        "plugins/aufs-csi.dev/csi.sock",
        "plugins_registry/aufs-csi.dev-reg.sock",
        "plugins_registry/other-reg.sock",
    ] {
        drop(std::os::unix::net::UnixListener::bind(kubelet.join(socket)).unwrap());
    }
    kubelet
}

#[test]
fn purge_leaves_nothing_of_ours_and_all_of_others() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    place.good(&["stage", "oci:image:latest"]);
    let kubelet = kubelet_of(&place);
    let purge = ["purge", "--kubelet-root", kubelet.to_str().unwrap()];
    fs::write(place.path("run/theirs"), "").unwrap();
    // As in a container, whose /dev lacks devices that are made later.
    for node in ["loop-control", "loop0", "loop12"] {
        fs::write(place.path("run").join(node), "").unwrap();
    }
    place.good(&purge);
    assert!(!place.path("store").exists());
    let names = |path: &Path| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&place.path("run")), ["theirs"]);
    assert_eq!(names(&kubelet), ["plugins", "plugins_registry", "pods"]);
    assert_eq!(names(&kubelet.join("plugins")), ["other"]);
    assert_eq!(names(&kubelet.join("plugins_registry")), ["other-reg.sock"]);
    assert!(place.path("image").exists());
    // Again, and where there never was anything.
    fs::remove_file(place.path("run/theirs")).unwrap();
    place.good(&purge);
    place.good(&["purge", "--kubelet-root", "/nonexistent"]);
    assert!(!place.path("store").exists() && !place.path("run").exists());
    // The next one begins anew.
    place.good(&["stage", "oci:image:latest"]);
}

#[test]
fn purge_names_what_is_in_use_and_touches_nothing() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("target");
    let at = target.to_str().unwrap();
    let kubelet = kubelet_of(&place);
    let purge = ["purge", "--kubelet-root", kubelet.to_str().unwrap()];
    place.good(&["mount", "oci:image:latest", at]);
    let (code, text) = place.code(&purge);
    assert_eq!(code, 75, "{text}");
    assert!(text.contains("still in use") && text.contains(at), "{text}");
    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "one");
    fs::write(target.join("mine"), "").unwrap();
    place.good(&["unmount", at]);
    // Somebody's mount in the store: its files are not ours to remove.
    let theirs = place.target("theirs");
    fs::write(theirs.join("precious"), "").unwrap();
    let mut branches = fs::read_dir(place.path("store/diff")).unwrap();
    let inside = branches.next().unwrap().unwrap().path();
    bind(&theirs, &inside);
    let (code, text) = place.code(&purge);
    assert_eq!(code, 75, "{text}");
    assert!(text.contains(inside.to_str().unwrap()), "{text}");
    assert_ne!(place.good(&["images", "--output", "json"]).trim(), "[]");
    unmount(&inside);
    assert!(theirs.join("precious").exists());
    // A plugin that runs.
    let socket = kubelet.join("plugins/aufs-csi.dev/csi.sock");
    fs::remove_file(&socket).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, text) = place.code(&purge);
    assert_eq!(code, 75, "{text}");
    assert!(text.contains("the plugin runs"), "{text}");
    assert!(place.path("store/store.json").exists());
    drop(listener);
    place.good(&purge);
    assert!(!place.path("store").exists());
}

#[test]
fn a_purge_that_was_cut_short_is_finished_by_the_next() {
    // Whatever is gone by then; a purge begins with the records.
    for gone in [
        &["images"][..],
        &["images", "pulls", "access", "layers"],
        &["images", "pulls", "access", "layers", "diff", "store.lock"],
    ] {
        let place = Place::new();
        place.image(&place.path("image"), "one");
        place.good(&["stage", "oci:image:latest"]);
        for name in gone {
            let path = place.path("store").join(name);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        // The store can be used in between.
        assert_eq!(place.good(&["images", "--output", "json"]).trim(), "[]");
        place.good(&["purge", "--kubelet-root", "/nonexistent"]);
        assert!(!place.path("store").exists(), "{gone:?}");
    }
}

#[test]
fn gc_says_of_everything_what_becomes_of_it_and_why() {
    let place = Place::new();
    place.image(&place.path("used"), "used");
    place.image(&place.path("unused"), "unused");
    let target = place.target("target");
    let target = target.to_str().unwrap();
    place.good(&["stage", "oci:unused:latest"]);
    place.good(&["mount", "oci:used:latest", target]);
    let gc = |more: &[&str]| place.good(&[&["gc"], more].concat());
    let lines = |text: &str, begin: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with(begin));
        lines.map(str::to_owned).collect()
    };
    // A moment ago it was staged.
    let text = gc(&["--all", "--dry-run"]);
    let kept = lines(&text, "keep").join("\n");
    for words in ["used a moment ago", "needed: volume", "unused:latest"] {
        assert!(kept.contains(words), "{words}: {text}");
    }
    assert!(text.contains("would remove 0 of 2"), "{text}");
    // Nor is it removed where there is space.
    let text = gc(&["--gc-min-age", "0s", "--gc-high", "100", "--gc-low", "100"]);
    assert!(text.contains("there is space"), "{text}");
    assert!(text.contains("removed 0 of 2"), "{text}");
    let all = ["--all", "--gc-min-age", "0s"];
    let text = gc(&[&all[..], &["--dry-run"]].concat());
    let [line] = &lines(&text, "remove")[..] else {
        panic!("{text}");
    };
    assert!(line.contains("unused:latest"), "{text}");
    assert!(line.contains("nobody needs it"), "{text}");
    let images = |at_least: usize| {
        let images: serde_json::Value =
            serde_json::from_str(&place.good(&["images", "--output", "json"])).unwrap();
        assert_eq!(images.as_array().unwrap().len(), at_least, "{images}");
        images
    };
    images(2);
    let json = gc(&[&all[..], &["--output", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["removed"], 1, "{json}");
    let decisions = json["decisions"].as_array().unwrap();
    let verdict_of = |end: &str| {
        let is = |it: &&serde_json::Value| it["names"][0].as_str().unwrap().ends_with(end);
        decisions.iter().find(is).unwrap()["verdict"].clone()
    };
    assert_eq!(verdict_of("/unused:latest"), "asked");
    let needed = verdict_of("/used:latest")["needed"][0].clone();
    assert!(needed.as_str().unwrap().starts_with("volume "), "{json}");
    assert!(images(1)[0]["used"].as_u64().unwrap() > 0);
    place.good(&["unmount", target]);
    gc(&all);
    images(0);
    for (arguments, words) in [
        (&["--gc-low", "90"][..], "--gc-low"),
        (&["--gc-high", "0"], "--gc-high"),
        (&["--max-store-size", "much"], "--max-store-size"),
    ] {
        let (code, text) = place.code(&[&["gc"], arguments].concat());
        assert_eq!(code, 64, "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn gc_goes_by_the_policy_file_as_the_plugin_does() {
    let place = Place::new();
    place.image(&place.path("unused"), "unused");
    place.good(&["stage", "oci:unused:latest"]);
    let file = place.path("policy.yaml");
    let policy = ["--policy", file.to_str().unwrap()];
    let with = |more: &[&'static str]| [&["gc", "--all"], &policy[..], more].concat();
    fs::write(&file, "gc: {minAge: 1h, low: 60}\n").unwrap();
    let text = place.good(&with(&["--gc-min-age", "0s"]));
    assert!(text.contains("removed 0 of 1"), "{text}");
    fs::write(&file, "gc: {minAge: 0s}\n").unwrap();
    let text = place.good(&with(&[]));
    assert!(text.contains("removed 1 of 1"), "{text}");
    fs::write(&file, "gc: {minAge: soon}\ngcc: 1\n").unwrap();
    let (code, text) = place.code(&with(&["--gc-low", "x"]));
    assert_eq!(code, 64, "{text}");
    for words in ["gc.minAge", "gcc", "--gc-low"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn all_faults_of_a_policy_file_are_told_at_once() {
    let place = Place::new();
    let file = place.path("policy.yaml");
    fs::write(
        &file,
        "maxImages: 0\nreadOnlyOnly: maybe\nallowedMedium: [Disk]\n",
    )
    .unwrap();
    let named = file.to_str().unwrap();
    for arguments in [
        &["check", "--policy", named][..],
        &["node", "--node-id", "a", "--policy", named],
    ] {
        let (code, text) = place.code(arguments);
        assert_eq!(code, 64, "{text}");
        for fault in [
            "maxImages is 0",
            "readOnlyOnly is \"maybe\"",
            "did you mean allowedMedia?",
        ] {
            assert!(text.contains(fault), "{arguments:?}: {fault}: {text}");
        }
        assert!(
            text.lines().all(|line| line.contains("policy.yaml")),
            "{text}"
        );
    }
    let (code, text) = place.code(&["check", "--policy", "/nowhere/policy.yaml"]);
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("cannot be read"), "{text}");
    fs::write(&file, "maxImages: 3\n").unwrap();
    let (code, text) = place.code(&["check", "--policy", named]);
    assert_eq!(code, 0, "{text}");
}

/// Without root there are no loop devices: a limit on disk is refused rather than
/// ignored, one in memory holds.
#[test]
#[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
fn without_root_a_limit_on_disk_is_refused_and_one_in_memory_holds() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let disk = place.target("disk");
    let memory = place.target("memory");
    let mount = |target: &Path, more: &str| {
        let program = env!("CARGO_BIN_EXE_aufs-csi");
        // The mount goes with the namespace; the write is made inside of it.
        let script = format!(
            "'{program}' --rootless mount oci:image:latest '{at}' --size-limit 4Mi {more} || exit\n\
             head -c 8388608 /dev/zero >'{at}/zeros' && exit 3\n\
             '{program}' --rootless unmount '{at}'",
            at = target.display()
        );
        std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--", "sh", "-c"])
            .arg(script)
            .env("AUFS_CSI_ROOT", place.path("own"))
            .env("AUFS_CSI_RUN_DIR", place.path("own-run"))
            .current_dir(place.path("."))
            .output()
            .expect("the program unshare of util-linux is needed")
    };
    let output = mount(&disk, "");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("a filesystem of its own"), "{text}");
    let left = fs::read_dir(place.path("own/volumes")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let output = mount(&memory, "--medium memory");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
}

/// As `kubectl debug node` shows the node to a container: all that is recorded has
/// another path there, and what is mounted cannot be seen by its name.
#[test]
#[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
fn purge_in_a_container_that_has_the_node_below_a_directory_touches_no_volume() {
    let place = Place::new();
    place.image(&place.path("image"), "one");
    let target = place.target("kubelet/pods/u/volumes/kubernetes.io~csi/v/mount");
    place.good(&["mount", "oci:image:latest", target.to_str().unwrap()]);
    fs::write(target.join("mine"), "by the pod").unwrap();
    let volumes = fs::read_dir(place.path("store/volumes")).unwrap();
    let record = volumes
        .map(|entry| entry.unwrap().path().join("record.json"))
        .find(|path| path.exists())
        .unwrap();
    // As the plugin's own, which it looks after: mounted, or being taken down.
    let text = fs::read_to_string(&record).unwrap();
    let host = tempfile::tempdir().unwrap();
    for state in ["mounted", "leaving"] {
        let text = text
            .replace("\"command\"", "\"plugin\"")
            .replace("\"state\": \"mounted\"", &format!("\"state\": \"{state}\""));
        assert!(text.contains("plugin") && text.contains(state), "{text}");
        fs::write(&record, &text).unwrap();
        let script = format!(
            "mount --rbind '{place}' '{host}' && mount -t tmpfs none '{place}' &&\n\
             exec '{program}' purge --root '{host}/store' --run-dir '{host}/run' \
             --kubelet-root '{host}/kubelet'",
            place = place.path("").display(),
            host = host.path().display(),
            program = env!("CARGO_BIN_EXE_aufs-csi"),
        );
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c"])
            .arg(script)
            .output()
            .expect("the program unshare of util-linux is needed");
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{state}: {words}");
        assert!(words.contains(target.to_str().unwrap()), "{state}: {words}");
        let mine = fs::read_to_string(target.join("mine")).unwrap();
        assert_eq!(mine, "by the pod", "{state}");
        let which = fs::read_to_string(target.join("which")).unwrap();
        assert_eq!(which, "one", "{state}");
    }
    fs::write(&record, text).unwrap();
    place.good(&["unmount", target.to_str().unwrap()]);
}

/// Whoever uses the store when a purge begins is waited for, and may have mounted a
/// volume by then.
#[test]
#[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
fn purge_looks_again_when_it_has_waited() {
    use rustix::fs::{FlockOperation, flock};
    let place = Place::new();
    place.image(&place.path("image"), "one");
    place.good(&["stage", "oci:image:latest"]);
    let target = place.target("target");
    // As a mount does while it stages.
    let lock = fs::File::open(place.path("store/store.lock")).unwrap();
    flock(&lock, FlockOperation::LockShared).unwrap();
    let mut purge = std::process::Command::new(env!("CARGO_BIN_EXE_aufs-csi"))
        .args(["purge", "--kubelet-root", "/nonexistent"])
        .env("AUFS_CSI_ROOT", place.path("store"))
        .env("AUFS_CSI_RUN_DIR", place.path("run"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let id = purge.id().to_string();
    let waits = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let mut lines = locks.lines();
        lines.any(|line| line.contains("->") && line.split_whitespace().any(|part| part == id))
    };
    while !waits() {
        assert_eq!(purge.try_wait().unwrap(), None, "it does not wait");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    place.good(&["mount", "oci:image:latest", target.to_str().unwrap()]);
    flock(&lock, FlockOperation::Unlock).unwrap();
    let output = purge.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains(target.to_str().unwrap()), "{text}");
    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "one");
    place.good(&["unmount", target.to_str().unwrap()]);
    place.good(&["purge", "--kubelet-root", "/nonexistent"]);
}
