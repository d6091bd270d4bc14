//! Hand-laid branches and plans over them, on real mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::node::chain;
use aufs_csi::host::Host;
use aufs_csi::host::linux::LinuxHost;
use aufs_csi::union::{
    AufsFeatures, Backend, Features, MountPlan, OverlayFeatures, Writable, mount, unmount, verify,
};
use rustix::fs::{CWD, FileType, Mode};

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn backend() -> Backend {
    match std::env::var("AUFS_CSI_BACKEND").as_deref() {
        Ok("aufs") => Backend::Aufs,
        Ok("overlay") | Err(_) => Backend::Overlay,
        Ok(other) => panic!("AUFS_CSI_BACKEND is {other}, which is neither aufs nor overlay"),
    }
}

/// Directories for one test; takes down and removes all of it at the end.
pub struct Bench {
    pub root: PathBuf,
    pub run: PathBuf,
    pub features: Features,
    /// Removed after what is mounted in them was taken down.
    _directories: [tempfile::TempDir; 2],
}

impl Bench {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount filesystems and need root"
        );
        let place = |variable: &str, default: PathBuf| {
            let parent = std::env::var_os(variable).map_or(default, PathBuf::from);
            let parent = fs::canonicalize(&parent)
                .unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
            tempfile::Builder::new()
                .prefix("union-")
                .tempdir_in(parent)
                .unwrap()
        };
        let directories = [
            place("AUFS_CSI_TEST_DIR", std::env::temp_dir()),
            place("AUFS_CSI_TEST_RUN", "/dev/shm".into()),
        ];
        Self {
            root: directories[0].path().to_path_buf(),
            run: directories[1].path().to_path_buf(),
            _directories: directories,
            features: Features {
                page_size: rustix::param::page_size(),
                aufs: AufsFeatures {
                    dirperm1: true,
                    icexusr: true,
                    branch_limit: 127,
                },
                overlay: OverlayFeatures {
                    lowerdir_append: LinuxHost.overlay_appends(),
                    // A user namespace may not open files by their handles.
                    index: is_initial_user_namespace(),
                    userxattr: !is_initial_user_namespace(),
                },
            },
        }
    }

    pub fn directory(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A branch with files, given as path and content.
    pub fn branch(&self, name: impl AsRef<Path>, files: &[(&str, &str)]) -> PathBuf {
        let branch = self.directory(name);
        for (path, content) in files {
            let path = branch.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        branch
    }

    pub fn whiteout(&self, branch: &Path, name: &str) {
        match backend() {
            Backend::Aufs => fs::write(branch.join(format!(".wh.{name}")), "").unwrap(),
            Backend::Overlay | Backend::Bind => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, branch.join(name), kind, Mode::empty(), 0).unwrap();
            }
        }
    }

    pub fn plan(&self, name: &str, branches: Vec<PathBuf>, read_only: bool) -> MountPlan {
        let volume = |part: &str| self.directory(format!("volumes/{name}/{part}"));
        MountPlan {
            backend: backend().for_volume(branches.len(), read_only),
            branches,
            writable: (!read_only).then(|| Writable {
                upper: volume("upper"),
                work: volume("work"),
                memory: false,
            }),
            target: volume("target"),
            staging: volume("staging"),
            sub_path: None,
            read_only,
            label: None,
            xino: Some(self.run.join(name)),
        }
    }

    pub fn mount(&self, plan: &MountPlan) {
        mount(&LinuxHost, plan, &self.features).unwrap_or_else(|error| panic!("{}", chain(&error)));
        verify(&LinuxHost, plan).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    pub fn unmount(&self, plan: &MountPlan) {
        unmount(&LinuxHost, &[&plan.target, &plan.staging], PATIENCE)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
    }

    /// Mount points below this bench, in the order of mounting.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = LinuxHost.mount_table().unwrap().into_iter();
        table
            .map(|entry| entry.mount_point)
            .filter(|at| at.starts_with(&self.root))
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for at in self.mounts().iter().rev() {
            if let Err(error) = unmount(&LinuxHost, &[at], PATIENCE) {
                eprintln!("{}", chain(&error));
            }
        }
    }
}

pub fn is_initial_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Branches that each hold one file of all and one of their own.
pub fn many_branches(bench: &Bench, count: usize, length: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|index| {
            let name = format!("many/{index:04}{}", "x".repeat(length));
            let own = format!("own-{index}");
            bench.branch(name, &[("all", &index.to_string()), (&own, "")])
        })
        .collect()
}

pub fn check_many(bench: &Bench, plan: &MountPlan, count: usize) {
    bench.mount(plan);
    assert_eq!(text(plan.target.join("all")), "0");
    assert_eq!(names(&plan.target).len(), count + 1);
    for index in 0..count {
        let own = plan.target.join(format!("own-{index}"));
        assert!(own.exists(), "branch {index} is missing");
    }
    bench.unmount(plan);
}
