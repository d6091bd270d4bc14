//! The story of `make try`: an image, the plugin, two pods that share its
//! layers, what one of them changes, and that nothing is left.
//!
//! Every step looks whether it is true what it says, and the story ends with an
//! error where it is not.

mod image;
mod plugin;

use aufs_csi::chain::Chain;
use aufs_csi::layer::archive::WriteError;
use plugin::{Place, Plugin};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

/// The image, as a pod would name it.
const TAG: &str = "1";
/// The pods.
const BLUE: &str = "pod-blue";
const GREEN: &str = "pod-green";

/// Why the story ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line is wrong.
    #[error("usage: try [--rootless] [PROGRAM]")]
    Usage,
    /// A file cannot be read or made.
    #[error("cannot {action} {}", path.display())]
    Path {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// This machine has no files that can be packed.
    #[error("found no files to make an image of")]
    NoFiles,
    /// Something that is no file fails.
    #[error("cannot {action}")]
    System {
        action: &'static str,
        source: io::Error,
    },
    /// A layer cannot be packed.
    #[error("cannot pack a layer")]
    Layer(#[source] WriteError),
    /// The person wants it to end.
    #[error("interrupted")]
    Interrupted,
    /// The plugin said no.
    #[error("the plugin answered {:?}: {}", .0.code(), .0.message())]
    Plugin(tonic::Status),
    /// The plugin ended by itself.
    #[error("the plugin ended with {status}")]
    Ended { status: ExitStatus },
    /// The plugin takes too long.
    #[error("the plugin does not {what}")]
    Slow { what: &'static str },
    /// A command failed.
    #[error("aufs-csi {command} failed: {said}")]
    Command { command: String, said: String },
    /// There is no place where volumes can be.
    #[error("volumes cannot be made on this machine:\n{said}")]
    NoPlace { said: String },
    /// What a step says is not so.
    #[error("this is not so: {0}")]
    NotSo(String),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Failure::Plugin(status)
    }
}

impl Failure {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::System { action, source }
    }

    pub(crate) fn path(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
        let path = path.to_owned();
        move |source| Failure::Path {
            action,
            path,
            source,
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ntry: {}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut rootless = false;
    let mut program = None;
    for argument in std::env::args_os().skip(1) {
        if argument == "--rootless" {
            rootless = true;
        } else if program.is_none() {
            program = Some(PathBuf::from(argument));
        } else {
            return Err(Failure::Usage);
        }
    }
    let program = match program {
        Some(program) => program
            .canonicalize()
            .map_err(Failure::path("find", &program))?,
        None => beside_this_program()?,
    };
    let place = choose_place(program, rootless)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start a runtime"))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = story(&place) => result,
            // What is mounted by then goes with the clean-up.
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    });
    if result.is_err() {
        let log = fs::read_to_string(place.log()).unwrap_or_default();
        eprintln!("\nThe plugin's log:\n{log}");
    }
    clean_up(&place)?;
    result
}

/// Cargo puts examples into a directory beside the program.
fn beside_this_program() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(Failure::system("find this program"))?;
    let program = this
        .parent()
        .and_then(Path::parent)
        .map(|directory| directory.join("aufs-csi"))
        .filter(|program| program.exists());
    program.ok_or(Failure::Usage)
}

/// A directory on a filesystem that unions can be made on. In containers `/tmp`
/// is often itself an overlay, on which there can be no other.
fn choose_place(program: PathBuf, rootless: bool) -> Result<Place, Failure> {
    let name = format!("aufs-csi-try.{}", std::process::id());
    let mut said = String::new();
    for base in [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()] {
        let work = base.join(&name);
        // Not everybody may write to each of them. As with the store of a node,
        // nobody else looks into it.
        let private = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        if private(&work).is_err() {
            continue;
        }
        let shm = Path::new("/dev/shm").join(format!("{name}.run"));
        let run = match private(&shm) {
            Ok(()) => shm,
            Err(_) => work.join("run"),
        };
        let place = Place {
            program: program.clone(),
            work: work.canonicalize().map_err(Failure::path("find", &work))?,
            run,
            rootless,
        };
        match place.check()? {
            Ok(_) => return Ok(place),
            Err(report) => said = report,
        }
        clean_up(&place)?;
    }
    Err(Failure::NoPlace { said })
}

async fn story(place: &Place) -> Result<(), Failure> {
    say("1. An image of three layers, made from files of this machine");
    let made = image::make(&place.images().join("demo"))?;
    for (number, layer) in made.layers.iter().enumerate() {
        println!("   layer {}  {layer}", number + 1);
    }
    let image = format!("oci:{}/demo:{TAG}", place.images().display());
    println!("   It is {image}");

    say("2. The plugin starts and serves CSI on a unix socket, as on a node");
    let plugin = Plugin::start(place).await?;
    let info = plugin.info().await?;
    println!("   {} {}", info.name, info.vendor_version);
    if place.rootless {
        println!("   It is rootless: in a user namespace, with overlayfs.");
    }

    say("3. Two pods want the image as a volume (NodePublishVolume, as kubelet asks)");
    let first = plugin.publish(place, BLUE, &image).await?;
    println!(
        "   {BLUE}:  {:>7.1} ms  (layers verified, unpacked, mounted)",
        milliseconds(first)
    );
    let second = plugin.publish(place, GREEN, &image).await?;
    println!(
        "   {GREEN}: {:>7.1} ms  (layers are there: only mounted)",
        milliseconds(second)
    );
    // And again, as kubelet does for every volume when it restarts.
    plugin.publish(place, GREEN, &image).await?;
    show(&place.output(&["volumes"])?);
    let (blue, green) = (place.target(BLUE), place.target(GREEN));
    so(
        "both pods see the uppermost layer",
        read(&blue, image::VERSION)? == "app\n",
    )?;
    so(
        "the patch layer has deleted a file",
        !blue.join(image::DELETED).exists(),
    )?;

    say("4. The layers are on disk once, whoever mounts them");
    show(&place.output(&["layers"])?);
    let layers = on_disk(&place.store().join("diff"))?;
    let written = on_disk(&place.store().join("volumes"))?;
    println!(
        "   image {:.1} MB; layers on disk {:.1} MB; both writable layers together {:.1} kB",
        made.bytes as f64 / 1e6,
        layers as f64 / 1e6,
        written as f64 / 1e3
    );
    so("the pods have copied nothing", written < 1_000_000)?;
    let inode = |pod: &Path| Ok::<u64, Failure>(metadata(&pod.join(&made.shared))?.ino());
    println!(
        "   /{} has inode {} in {BLUE} and {} in {GREEN}",
        made.shared.display(),
        inode(&blue)?,
        inode(&green)?
    );

    say("5. One pod writes; the other one and the image stay as they are");
    write(&blue, "srv/app/settings", "colour=green\n")?;
    write(&blue, "srv/app/notes", "new\n")?;
    remove(&blue, "srv/app/greeting")?;
    for name in ["settings", "notes", "greeting"] {
        let path = format!("srv/app/{name}");
        let shown = |pod: &Path| match read(pod, &path) {
            Ok(text) => text.trim_end().to_owned(),
            Err(_) => "(none)".to_owned(),
        };
        println!(
            "   /{path:18}  {BLUE}: {:14} {GREEN}: {}",
            shown(&blue),
            shown(&green)
        );
    }
    so(
        "the other pod's file is unchanged",
        read(&green, "srv/app/settings")? == "colour=blue\n",
    )?;
    so(
        "the deleted file is there in the other pod",
        green.join("srv/app/greeting").exists(),
    )?;
    so("the new file is not", !green.join("srv/app/notes").exists())?;

    say("6. What was changed, by `aufs-csi diff`");
    println!("   {BLUE}:");
    let changed = place.output(&["diff", &blue.to_string_lossy()])?;
    show(&changed);
    for line in [
        "C /srv/app/settings",
        "A /srv/app/notes",
        "D /srv/app/greeting",
    ] {
        so(
            &format!("diff says {line}"),
            changed.lines().any(|found| found == line),
        )?;
    }
    let unchanged = place.output(&["diff", &green.to_string_lossy()])?;
    println!(
        "   {GREEN}: {}",
        if unchanged.is_empty() {
            "nothing"
        } else {
            &unchanged
        }
    );
    so("diff says nothing of the other pod", unchanged.is_empty())?;

    say("7. The pods end (NodeUnpublishVolume), and the plugin is stopped");
    for pod in [BLUE, GREEN] {
        plugin.unpublish(place, pod).await?;
    }
    let status = plugin.stop().await?;
    so("the plugin ended in order", status.success())?;
    let mounts = mounts_below(&place.work)?;
    let volumes = names(&place.store().join("volumes"))?;
    println!("   mounts left: {}", mounts.len());
    println!("   writable layers left: {}", volumes.len());
    println!(
        "   targets left: {}",
        [&blue, &green]
            .iter()
            .filter(|target| target.exists())
            .count()
    );
    so("no mount is left", mounts.is_empty())?;
    so("no writable layer is left", volumes.is_empty())?;
    so("no target is left", !blue.exists() && !green.exists())?;
    so("the socket is gone", !place.socket().exists())?;
    println!("   The staged layers would stay for the next pod; this story removes them too.");
    println!("\nAll of it is as it should be.");
    Ok(())
}

fn say(heading: &str) {
    println!("\n{heading}");
}

fn show(output: &str) {
    for line in output.lines() {
        println!("   | {line}");
    }
}

fn so(what: &str, holds: bool) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure::NotSo(what.to_owned()))
    }
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn metadata(path: &Path) -> Result<fs::Metadata, Failure> {
    path.symlink_metadata()
        .map_err(Failure::path("look at", path))
}

fn read(pod: &Path, name: &str) -> Result<String, Failure> {
    let path = pod.join(name);
    fs::read_to_string(&path).map_err(Failure::path("read", &path))
}

fn write(pod: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = pod.join(name);
    fs::write(&path, text).map_err(Failure::path("write", &path))
}

fn remove(pod: &Path, name: &str) -> Result<(), Failure> {
    let path = pod.join(name);
    fs::remove_file(&path).map_err(Failure::path("remove", &path))
}

fn names(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(directory).map_err(Failure::path("list", directory))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<Result<_, _>>()
        .map_err(Failure::path("list", directory))
}

/// Bytes that the files below a directory take; directories are not counted.
fn on_disk(directory: &Path) -> Result<u64, Failure> {
    const BLOCK_BYTES: u64 = 512;
    let mut bytes = 0;
    for path in names(directory)? {
        let metadata = metadata(&path)?;
        bytes += if metadata.is_dir() {
            on_disk(&path)?
        } else {
            metadata.blocks() * BLOCK_BYTES
        };
    }
    Ok(bytes)
}

fn mounts_below(directory: &Path) -> Result<Vec<String>, Failure> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(Failure::path("read", table))?;
    let directory = directory.to_string_lossy();
    // The fifth field is where it is mounted.
    let place = |line: &&str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    Ok(text
        .lines()
        .filter(|line| place(line).starts_with(&*directory))
        .map(str::to_owned)
        .collect())
}

/// Takes away what a story that ended early may have left. What is still mounted
/// is named and not touched.
fn clean_up(place: &Place) -> Result<(), Failure> {
    for pod in [BLUE, GREEN] {
        let target = place.target(pod);
        if target.exists()
            && let Err(error) = place.output(&["unmount", &target.to_string_lossy()])
        {
            eprintln!("try: {}", Chain(&error));
        }
    }
    let mounts = mounts_below(&place.work)?;
    so(
        &format!("nothing is mounted below {}", place.work.display()),
        mounts.is_empty(),
    )?;
    for directory in [&place.work, &place.run] {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::path("remove", directory)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
