//! The program is killed at any moment, and several use one store at once:
//! what comes next finds a store that works, and nothing is left of the dead.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::union::probe::UnionRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::entry::{Layer, dir, file, hardlink, opaque, symlink, whiteout};
use support::model::flatten;
use support::node::{TestNode, union};
use support::oci_layout::OciLayout;
use support::tarball::{Compression, tars};
use support::tree::{Compared, Tree, assert_same, read};

/// Bytes that tell where they belong.
fn content(image: usize, layer: usize, file: usize) -> Vec<u8> {
    let mut bytes = format!("image {image} layer {layer} file {file}\n").into_bytes();
    let byte = (image * 31 + layer * 7 + file) as u8;
    bytes.resize(bytes.len() + 20_000, byte);
    bytes
}

/// Layers that need edits for a union, each of its own image.
fn layers(image: usize) -> Vec<Layer> {
    layers_of(image, 60)
}

/// With so many files in each.
fn layers_of(image: usize, files: usize) -> Vec<Layer> {
    let mut layers: Vec<Layer> = (0..4)
        .map(|layer| {
            let mut entries = vec![dir(format!("l{layer}")).mode(0o750)];
            for number in 0..files {
                let path = format!("l{layer}/f{number}");
                entries.push(file(path, content(image, layer, number)).owner(7, 8));
            }
            entries
        })
        .collect();
    layers[1].extend([whiteout("l0/f0"), symlink("s", "l1")]);
    layers[2].extend([
        hardlink("linked", "l0/f1"),
        opaque("l1"),
        file("s/through", b"t"),
    ]);
    layers[3].extend([dir("l0/f2"), whiteout("l2"), file("l2/anew", b"anew")]);
    layers
}

/// A store, made and used by the real program alone.
struct Place {
    /// For its directories, and for clearing away whatever a test leaves.
    node: TestNode,
}

impl Place {
    fn new() -> Self {
        Place {
            node: TestNode::new(),
        }
    }

    fn store(&self) -> PathBuf {
        self.node.path().join("store")
    }

    fn run_dir(&self) -> PathBuf {
        let name = self.node.path().file_name().unwrap().to_string_lossy();
        Path::new("/dev/shm").join(format!("{name}-run"))
    }

    /// An image on disk, as the command line names it.
    fn image(&self, number: usize, layers: &[Layer]) -> String {
        let dir = self.node.path().join("images").join(number.to_string());
        OciLayout::new(&dir).image("latest", &tars(layers), Compression::Gzip);
        format!("oci:{}:latest", dir.display())
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.node.path().join(name);
        fs::create_dir_all(&target).unwrap();
        target
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "only a process of its own can be killed like one"
    )]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aufs-csi"));
        command
            .env_clear()
            .env("AUFS_CSI_ROOT", self.store())
            .env("AUFS_CSI_RUN_DIR", self.run_dir())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if arguments[0] == "stage" || arguments[0] == "mount" {
            let name = match union() {
                UnionRequest::Auto => "auto",
                UnionRequest::Aufs => "aufs",
                UnionRequest::Overlay => "overlay",
            };
            command.args(["--union", name]);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it to a good end.
    fn good(&self, arguments: &[&str]) {
        is_good(arguments, &self.run(arguments));
    }

    /// Starts it and kills it after a time; whether that met it alive.
    fn kill(&self, arguments: &[&str], after: Duration) -> bool {
        let begin = Instant::now();
        let child = self.command(arguments).spawn().unwrap();
        std::thread::sleep(after.saturating_sub(begin.elapsed()));
        self.kill_now(arguments, child)
    }

    /// Starts it and kills it a time after its first commit; whether that met
    /// it alive.
    fn kill_after_a_commit(&self, arguments: &[&str], after: Duration) -> bool {
        let layers = self.store().join("layers");
        let known = names(&layers);
        let mut child = self.command(arguments).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            let is_commit = |name: &String| name.ends_with(".json") && !known.contains(name);
            if names(&layers).iter().any(is_commit) {
                std::thread::sleep(after);
                break;
            }
        }
        self.kill_now(arguments, child)
    }

    fn kill_now(&self, arguments: &[&str], mut child: Child) -> bool {
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.signal() != Some(9) {
            is_good(arguments, &output);
        }
        output.status.signal() == Some(9)
    }

    /// As [`Place::command`], under a tracer that does this.
    #[expect(clippy::disallowed_methods, reason = "the tracer is another program")]
    fn traced(&self, tracing: &[&str], arguments: &[&str]) -> Output {
        let command = self.command(arguments);
        let mut tracer = Command::new("strace");
        tracer
            .args(["-f", "-qq"])
            .args(tracing)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            tracer.env(name, value.unwrap());
        }
        tracer.output().expect("the program strace is needed")
    }

    /// System calls that a run makes, by the thread that makes most.
    fn calls(&self, arguments: &[&str]) -> usize {
        let file = self.node.path().join("calls");
        let trace = format!("trace={CALLS}");
        let to = file.to_str().unwrap();
        is_good(
            arguments,
            &self.traced(&["-o", to, "-e", &trace], arguments),
        );
        let mut threads: BTreeMap<String, usize> = BTreeMap::new();
        for line in fs::read_to_string(&file).unwrap().lines() {
            // One that ends in another line was counted when it began.
            if let Some((thread, call)) = line.split_once(' ')
                && !call.contains(" resumed>")
            {
                *threads.entry(thread.to_owned()).or_default() += 1;
            }
        }
        threads.into_values().max().unwrap()
    }

    /// Kills it at a system call; whether it came so far.
    fn kill_at_call(&self, arguments: &[&str], call: usize) -> bool {
        let inject = format!("inject={CALLS}:signal=SIGKILL:when={call}");
        let tracing = ["-o", "/dev/null", "-e", &inject];
        let output = self.traced(&tracing, arguments);
        if output.status.signal() != Some(9) {
            is_good(arguments, &output);
        }
        output.status.signal() == Some(9)
    }

    /// As when the next process opens the store: nothing is in the making, and
    /// what there is has its record.
    fn is_whole(&self, what: &str) {
        let store = self.store();
        self.good(&["layers"]);
        assert_eq!(names(&store.join("ingest")), BTreeSet::new(), "{what}");
        let expected: BTreeSet<String> = names(&store.join("diff"))
            .iter()
            .flat_map(|id| ["json", "index", "edits"].map(|kind| format!("{id}.{kind}")))
            .collect();
        assert_eq!(names(&store.join("layers")), expected, "{what}");
        let images = names(&store.join("images"));
        assert!(
            !images.iter().any(|name| name.contains(".tmp")),
            "{what}: {images:?}"
        );
    }

    /// Whether any volume has come to its record.
    fn has_record(&self) -> bool {
        let volumes = self.store().join("volumes");
        names(&volumes)
            .iter()
            .any(|name| volumes.join(name).join("record.json").exists())
    }

    /// Nothing is left of volumes, nor of self-tests.
    fn has_no_volumes(&self, what: &str) {
        self.good(&["volumes"]);
        assert_eq!(
            names(&self.store().join("volumes")),
            BTreeSet::new(),
            "{what}"
        );
        assert_eq!(
            names(&self.run_dir().join("xino")),
            BTreeSet::new(),
            "{what}"
        );
        assert_eq!(mounts(self.node.path()), Vec::<String>::new(), "{what}");
    }

    /// Mounts an image, compares what is seen, and unmounts it.
    fn shows(&self, what: &str, image: &str, expected: &Tree) {
        let target = self.target("look");
        let at = target.to_str().unwrap();
        self.good(&["mount", image, at]);
        assert_same(what, expected, &read(&target).unwrap(), Compared::ALL);
        self.good(&["unmount", at]);
        self.has_no_volumes(what);
    }
}

fn is_good(arguments: &[&str], output: &Output) {
    assert!(
        output.status.success(),
        "{arguments:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Mounts at or below a directory, with what they are.
fn mounts(below: &Path) -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| Path::new(at).starts_with(below))
        })
        .map(str::to_owned)
        .collect()
}

/// Moments of a command that takes that long, in an order that is not the
/// time's: the state that one kill leaves is where the next begins.
fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    // 0.618… of the circle each time spreads any number of them evenly.
    (1..).map(move |number| whole.mul_f64((f64::from(number) * 0.618_034).fract()))
}

/// How long a command takes, by the best of a few: kills beyond it hit nothing.
fn duration(mut run: impl FnMut()) -> Duration {
    let mut one = || {
        let begin = Instant::now();
        run();
        begin.elapsed()
    };
    let first = one();
    first.min(one())
}

#[test]
fn killed_while_it_stages() {
    let place = Place::new();
    place.good(&["check"]);
    let mut fresh = 0;
    let mut next = || {
        fresh += 1;
        let layers = layers(fresh);
        (place.image(fresh, &layers), flatten(&layers).unwrap())
    };
    let whole = {
        let images = [next().0, next().0];
        let mut images = images.iter();
        duration(|| place.good(&["stage", images.next().unwrap()]))
    };
    let (mut image, mut expected) = next();
    let (mut killed, mut partly) = (0, 0);
    // Where the machine has less to do than before, some come too late.
    for (number, after) in moments(whole).take(150).enumerate() {
        if killed == 50 {
            break;
        }
        let known = names(&place.store().join("layers"));
        // Its commits are near the end and close together: a time alone seldom
        // comes between two of them.
        let (met, after) = match number % 3 {
            0 => {
                let after = after / 20;
                (place.kill_after_a_commit(&["stage", &image], after), after)
            }
            _ => (place.kill(&["stage", &image], after), after),
        };
        killed += u32::from(met);
        let what = format!("killed after {after:?} of {whole:?}");
        place.is_whole(&what);
        partly += u32::from(met && names(&place.store().join("layers")) != known);
        // Several kills in a row for the same image, in what the last one left.
        if number % 3 == 2 {
            place.good(&["stage", &image]);
            place.is_whole(&what);
            if number % 6 == 5 {
                place.shows(&what, &image, &expected);
            }
            (image, expected) = next();
        }
    }
    println!("{killed} kills within {whole:?}, {partly} after a commit");
    assert_eq!(killed, 50, "kills that met it alive");
    assert!(partly > 0, "none between the first commit and the end");
}

#[test]
fn killed_in_the_middle_of_its_first_start() {
    // The store is made, and the node is tested with real mounts.
    let place = Place::new();
    let layers = layers(0);
    let image = place.image(0, &layers);
    let expected = flatten(&layers).unwrap();
    let clear = || {
        let _ = fs::remove_dir_all(place.store());
        let _ = fs::remove_dir_all(place.run_dir());
    };
    clear();
    let whole = duration(|| {
        clear();
        place.good(&["stage", &image]);
    });
    let mut killed = 0;
    for after in moments(whole).take(30) {
        if killed == 8 {
            break;
        }
        clear();
        let met = place.kill(&["stage", &image], after);
        killed += u32::from(met);
        let what = format!("killed after {after:?} of {whole:?}");
        place.shows(&what, &image, &expected);
        place.is_whole(&what);
        let left = fs::read_dir(place.store().join("probe")).unwrap().count();
        assert_eq!(left, 0, "{what}: the self-test's directory");
    }
    assert_eq!(killed, 8, "kills that met it alive");
}

#[test]
fn killed_while_it_mounts_and_unmounts() {
    let place = Place::new();
    let layers = layers(0);
    let image = place.image(0, &layers);
    let expected = flatten(&layers).unwrap();
    place.good(&["stage", &image]);
    let target = place.target("target");
    let at = target.to_str().unwrap();
    let (mut up, mut down) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let begin = Instant::now();
        place.good(&["mount", &image, at]);
        up = up.min(begin.elapsed());
        let begin = Instant::now();
        place.good(&["unmount", at]);
        down = down.min(begin.elapsed());
    }
    let (mut killed_up, mut killed_down) = (0, 0);
    let times = moments(up).zip(moments(down));
    for (number, (up_after, down_after)) in times.take(180).enumerate() {
        if killed_up >= 40 && killed_down >= 30 {
            break;
        }
        let what = format!("mount killed after {up_after:?} of {up:?}");
        killed_up += u32::from(place.kill(&["mount", &image, at], up_after));
        if number % 4 != 3 {
            place.good(&["mount", &image, at]);
            assert_same(&what, &expected, &read(&target).unwrap(), Compared::ALL);
            fs::write(target.join("changed"), "by the pod").unwrap();
        } else if !place.has_record() {
            // It never came to a record, so it is no volume, whatever directory
            // it had made; and nobody asks again.
            place.has_no_volumes(&what);
            continue;
        }
        let what = format!("unmount killed after {down_after:?} of {down:?}, {what}");
        killed_down += u32::from(place.kill(&["unmount", at], down_after));
        let recorded = place.has_record();
        let again = place.run(&["unmount", at]);
        // One that came to its end is no volume any more.
        assert!(
            again.status.success() || (!recorded && again.status.code() == Some(66)),
            "{what}: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        place.has_no_volumes(&what);
        assert_eq!(names(&target), BTreeSet::new(), "{what}");
    }
    println!("{killed_up} mounts of {up:?} and {killed_down} unmounts of {down:?} killed");
    assert!(
        killed_up >= 40 && killed_down >= 30,
        "{killed_up} and {killed_down} kills met it alive"
    );
}

/// System calls that use files or descriptors, on which all that this program
/// leaves behind depends.
const CALLS: &str = "%file,%desc";

/// Every thread counts its own calls, and the first that comes to the number
/// kills them all.
#[test]
fn killed_at_any_system_call() {
    let place = Place::new();
    place.good(&["check"]);
    let target = place.target("target");
    let at = target.to_str().unwrap();
    let image = |number: usize| {
        // A tracer makes every call take long.
        let layers = layers_of(number, 12);
        (place.image(number, &layers), flatten(&layers).unwrap())
    };
    let first = image(0).0;
    let up = place.calls(&["mount", &first, at]);
    let down = place.calls(&["unmount", at]);
    let points = 40;
    let (mut killed_up, mut killed_down) = (0, 0);
    for point in 0..points {
        let nth = |all: usize| 1 + all * point / points;
        let (image, expected) = image(1 + point);
        let what = format!("mount killed at call {} of {up}", nth(up));
        killed_up += usize::from(place.kill_at_call(&["mount", &image, at], nth(up)));
        if point % 4 == 3 && !place.has_record() {
            place.has_no_volumes(&what);
            place.is_whole(&what);
            place.good(&["mount", &image, at]);
        } else if point % 4 != 3 {
            place.good(&["mount", &image, at]);
            assert_same(&what, &expected, &read(&target).unwrap(), Compared::ALL);
            fs::write(target.join("changed"), "by the pod").unwrap();
        }
        let what = format!("unmount killed at call {} of {down}, {what}", nth(down));
        killed_down += usize::from(place.kill_at_call(&["unmount", at], nth(down)));
        let recorded = place.has_record();
        let again = place.run(&["unmount", at]);
        assert!(
            again.status.success() || (!recorded && again.status.code() == Some(66)),
            "{what}: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        place.has_no_volumes(&what);
        place.is_whole(&what);
        assert_eq!(names(&target), BTreeSet::new(), "{what}");
    }
    println!(
        "of {points}: {killed_up} mounts killed within {up} calls, {killed_down} unmounts within {down}"
    );
    // The last calls of a run differ a little from one to the next.
    assert!(
        killed_up + killed_down >= points * 2 - 8,
        "{killed_up} and {killed_down} kills met it alive"
    );
}

fn start(place: &Place, arguments: &[&str]) -> Child {
    place.command(arguments).spawn().unwrap()
}

#[test]
fn two_processes_stage_the_same_image() {
    let place = Place::new();
    place.good(&["check"]);
    for round in 0..8 {
        let layers = layers(round);
        let image = place.image(round, &layers);
        let before = names(&place.store().join("diff")).len();
        let arguments = ["stage", image.as_str()];
        let both = [start(&place, &arguments), start(&place, &arguments)];
        for child in both {
            is_good(&arguments, &child.wait_with_output().unwrap());
        }
        let after = names(&place.store().join("diff")).len();
        assert_eq!(after - before, layers.len(), "one directory per layer");
        place.is_whole(&format!("round {round}"));
        place.shows(
            &format!("round {round}"),
            &image,
            &flatten(&layers).unwrap(),
        );
    }
}

#[test]
fn a_node_and_commands_use_one_store() {
    let place = Place::new();
    place.good(&["check"]);
    // What another process does to the node's store, all the time.
    std::thread::scope(|scope| {
        let commands = scope.spawn(|| {
            for round in 0..8 {
                let image = place.image(100 + round, &layers(100 + round / 2));
                place.good(&["stage", &image]);
                place.good(&["layers"]);
                place.good(&["images"]);
                place.good(&["volumes"]);
                let target = place.target("command");
                let at = target.to_str().unwrap();
                place.good(&["mount", &image, at]);
                place.good(&["unmount", at]);
                let image = place.image(200 + round, &layers(200 + round));
                place.kill(&["stage", &image], Duration::from_millis(30 * round as u64));
            }
        });
        let mut round = 0;
        while !commands.is_finished() || round < 8 {
            let id = round.to_string();
            let layers = layers(100 + round % 8);
            let source = place.image(300 + round, &layers).parse().unwrap();
            place
                .node
                .publish(&id, &source, round % 2 == 0)
                .unwrap_or_else(|error| panic!("{}", support::node::chain(&error)));
            let actual = read(&place.node.target(&id)).unwrap();
            let expected = flatten(&layers).unwrap();
            assert_same(&id, &expected, &actual, Compared::ALL);
            place.node.unpublish(&id);
            round += 1;
        }
        commands.join().unwrap();
    });
    place.is_whole("afterwards");
    place.has_no_volumes("afterwards");
}
