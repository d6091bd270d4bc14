//! kubelet's directories, which say what a pod still wants.
//!
//! `<root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/` is made by kubelet
//! before it asks for a volume, with `vol_data.json` in it, and is removed by it
//! after the volume was taken away. The volume itself appears at `mount` in it.

use std::io;
use std::path::{Component, Path};

/// kubelet's name for what it needs to know to unpublish a volume.
const VOLUME_DATA: &str = "vol_data.json";
/// Parts of a target below kubelet's directory.
const PARTS: usize = 6;

/// What kubelet has of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodDirectory {
    /// The directory with what kubelet needs to unpublish the volume.
    Present,
    /// The directory without that: kubelet cannot ask for anything any more.
    Forgotten,
    /// No directory.
    Gone,
}

/// Looks for the directory of the volume at `target`. Outside of kubelet's own
/// directories there is no `vol_data.json` to be looked for.
pub fn directory_of(kubelet_root: &Path, target: &Path) -> io::Result<PodDirectory> {
    let Some(directory) = target.parent() else {
        return Ok(PodDirectory::Present);
    };
    if !directory.try_exists()? {
        // The directory of pods that it was made in, which need not be below the
        // kubelet's directory of today, nor be seen from this container.
        let pods = target.ancestors().nth(PARTS - 1);
        let root = pods.and_then(Path::parent);
        if let (Some(pods), Some(root)) = (pods, root)
            && is_kubelets(root, target)
            && !pods.try_exists()?
        {
            // Its disk is not mounted yet, and then every pod seems to be gone.
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "kubelet's directory of pods is not there",
            ));
        }
        return Ok(PodDirectory::Gone);
    }
    if !is_kubelets(kubelet_root, target) || directory.join(VOLUME_DATA).try_exists()? {
        return Ok(PodDirectory::Present);
    }
    // Between the two looks it may have gone altogether.
    Ok(match directory.try_exists()? {
        true => PodDirectory::Forgotten,
        false => PodDirectory::Gone,
    })
}

/// Whether kubelet makes such paths for inline volumes.
pub fn is_kubelets(kubelet_root: &Path, target: &Path) -> bool {
    let Ok(inside) = target.strip_prefix(kubelet_root) else {
        return false;
    };
    let parts: Vec<_> = inside
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap_or_default(),
            _ => "",
        })
        .collect();
    matches!(
        parts[..],
        ["pods", _, "volumes", "kubernetes.io~csi", _, "mount"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn kubelets_paths_have_one_form() {
        let root = Path::new("/var/lib/kubelet");
        for (path, is) in [
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount",
                true,
            ),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v", false),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v/mount",
                false,
            ),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/x",
                false,
            ),
            ("/mnt/pods/u/volumes/kubernetes.io~csi/v/mount", false),
            ("/var/lib/kubelet/target", false),
        ] {
            assert_eq!(is_kubelets(root, Path::new(path)), is, "{path}");
        }
    }

    #[test]
    fn a_volume_is_wanted_for_as_long_as_kubelet_can_ask_for_its_end() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let volume = root.join("pods/u/volumes/kubernetes.io~csi/v");
        let target = volume.join("mount");
        let found = || directory_of(root, &target).unwrap();
        // Without kubelet's own directory nothing is known.
        assert!(directory_of(root, &target).is_err());
        fs::create_dir(root.join("pods")).unwrap();
        assert_eq!(found(), PodDirectory::Gone);
        fs::create_dir_all(&volume).unwrap();
        assert_eq!(found(), PodDirectory::Forgotten);
        fs::write(volume.join("vol_data.json"), "{}").unwrap();
        assert_eq!(found(), PodDirectory::Present);
        // Nor is it where kubelet's directory was before, or is for others.
        let before = root.join("before/pods/u/volumes/kubernetes.io~csi/v/mount");
        assert!(directory_of(root, &before).is_err());
        fs::create_dir_all(root.join("before/pods")).unwrap();
        assert_eq!(directory_of(root, &before).unwrap(), PodDirectory::Gone);
        let other = root.join("other/target");
        assert_eq!(directory_of(root, &other).unwrap(), PodDirectory::Gone);
        fs::create_dir_all(root.join("other")).unwrap();
        assert_eq!(directory_of(root, &other).unwrap(), PodDirectory::Present);
    }
}
