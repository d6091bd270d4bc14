//! What the operator allows pods, and how a pod's wishes become what it gets.
//! Pure. It is looked at before anything is fetched or mounted, and never for a
//! volume that is published already.
//!
//! Where each rule comes from, a flag or the policy file, is `config`'s affair;
//! errors name a rule as the file does, for that is what an operator looks for.

use super::request::RequestError;
use crate::image::reference::Source;
use crate::image::registry::AllowList;
use crate::union::probe::UnionRequest;
use crate::volume::attributes::{Attributes, Medium};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// What the operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// kubelet's directory; volumes are published below it.
    pub kubelet_root: PathBuf,
    /// Directories below which pods may use local images.
    pub local_images: Vec<PathBuf>,
    /// The only union that is used, or what a pod may choose from.
    pub union: UnionRequest,
    /// What pods may write in a volume's attributes besides.
    pub rules: Rules,
}

/// What pods may write in a volume's attributes. The default allows all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Images of registries that pods may name.
    pub registries: AllowList,
    /// Limits of writable layers on the node's disk.
    pub disk: SizeRule,
    /// Limits of writable layers in memory.
    pub memory: SizeRule,
    /// Where writable layers may be.
    pub media: Media,
    /// Whether volumes must be read-only.
    pub read_only_only: bool,
    /// Most images of one volume.
    pub max_images: Option<usize>,
    /// The `SELinux` label that the files of all volumes get.
    pub selinux_context: Option<String>,
}

/// What limit a writable layer has that asks for none, and the largest that one
/// may ask for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SizeRule {
    /// Where the pod says nothing.
    pub default: Option<u64>,
    /// At most. Where there is no default, it is also what a pod gets that says
    /// nothing: no limit is more than any.
    pub maximum: Option<u64>,
}

/// Where writable layers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Media {
    /// On the node's disk.
    pub disk: bool,
    /// In memory.
    pub memory: bool,
}

impl Default for Media {
    fn default() -> Self {
        Media {
            disk: true,
            memory: true,
        }
    }
}

/// The policy that holds now. Clones are the same one.
#[derive(Debug, Clone)]
pub struct LivePolicy(Arc<RwLock<Arc<Policy>>>);

impl From<Policy> for LivePolicy {
    fn from(policy: Policy) -> Self {
        LivePolicy(Arc::new(RwLock::new(Arc::new(policy))))
    }
}

impl LivePolicy {
    /// The policy as it is; what holds it does not see a later one.
    pub fn now(&self) -> Arc<Policy> {
        // It is replaced as a whole, whoever panicked.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on, another one holds.
    pub fn replace(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}

impl Policy {
    /// Refuses attributes that break a rule, and gives the limit that the
    /// writable layer gets.
    pub(super) fn admit(
        &self,
        attributes: &Attributes,
        read_only: bool,
    ) -> Result<Option<u64>, RequestError> {
        let rules = &self.rules;
        let broken = |rule, what: String| RequestError::Rule { rule, what };
        if let Some(most) = rules.max_images
            && attributes.images.len() > most
        {
            let count = attributes.images.len();
            let what = format!("the volume has {count} images, and {most} are allowed");
            return Err(broken("maxImages", what));
        }
        for image in &attributes.images {
            if let Source::Registry(name) = image
                && !rules.registries.allows(name)
            {
                let what = format!("the operator of this node does not allow the image {image}");
                return Err(broken("allowedRegistries", what));
            }
        }
        if read_only {
            return Ok(None);
        }
        if rules.read_only_only {
            let what = "volumes must be read-only; write readOnly: true".to_owned();
            return Err(broken("readOnlyOnly", what));
        }
        let (allowed, rule, key, name) = match attributes.medium {
            Medium::Disk => (rules.media.disk, rules.disk, "sizeLimit", "on the disk"),
            Medium::Memory => (rules.media.memory, rules.memory, "memory", "in memory"),
        };
        if !allowed {
            let what = format!("the operator of this node does not allow writable layers {name}");
            return Err(broken("allowedMedia", what));
        }
        match (attributes.size_limit, rule.maximum) {
            (Some(asked), Some(most)) if asked > most => Err(RequestError::Rule {
                rule: key,
                what: format!("sizeLimit is {asked} bytes, and at most {most} are allowed"),
            }),
            (Some(asked), _) => Ok(Some(asked)),
            (None, most) => Ok(rule.default.or(most)),
        }
    }

    /// The directory that a local source must stay in. That the path's text is below
    /// it is not enough, for it may hold symbolic links: whoever opens the source
    /// resolves it beneath this directory.
    pub(super) fn source_root(&self, source: &Source) -> Result<Option<PathBuf>, RequestError> {
        let Some(path) = source.path() else {
            return Ok(None);
        };
        let climbs = |path: &Path| {
            path.components()
                .any(|component| component == Component::ParentDir)
        };
        self.local_images
            .iter()
            .find(|root| path.starts_with(root) && !climbs(path))
            .map(|root| Some(root.clone()))
            // The allowed directories are the operator's affair, so they are not listed.
            .ok_or_else(|| RequestError::LocalImage {
                image: source.to_string(),
            })
    }

    /// What a pod asks for within what the operator allows.
    pub(super) fn union(&self, asked: UnionRequest) -> Result<UnionRequest, RequestError> {
        match (asked, self.union) {
            (UnionRequest::Auto, allowed) => Ok(allowed),
            (asked, UnionRequest::Auto) => Ok(asked),
            (UnionRequest::Aufs, UnionRequest::Aufs) => Ok(UnionRequest::Aufs),
            (UnionRequest::Overlay, UnionRequest::Overlay) => Ok(UnionRequest::Overlay),
            (UnionRequest::Aufs, UnionRequest::Overlay) => {
                Err(RequestError::Union { asked: "aufs" })
            }
            (UnionRequest::Overlay, UnionRequest::Aufs) => {
                Err(RequestError::Union { asked: "overlay" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn policy(rules: Rules) -> Policy {
        Policy {
            kubelet_root: PathBuf::from("/var/lib/kubelet"),
            local_images: vec![PathBuf::from("/images"), PathBuf::from("/srv/oci")],
            union: UnionRequest::Auto,
            rules,
        }
    }

    fn attributes(pairs: &[(&str, &str)], read_only: bool) -> Attributes {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Attributes::parse(&map, read_only).unwrap()
    }

    /// The limit, or the rule that was broken.
    fn verdict(
        rules: &Rules,
        pairs: &[(&str, &str)],
        read_only: bool,
    ) -> Result<Option<u64>, &'static str> {
        policy(rules.clone())
            .admit(&attributes(pairs, read_only), read_only)
            .map_err(|error| match error {
                RequestError::Rule { rule, .. } => rule,
                other => panic!("{other}"),
            })
    }

    #[test]
    fn a_volume_that_breaks_a_rule_is_told_which() {
        let registries = AllowList::new(vec!["ghcr.io/team/*".parse().unwrap()]);
        let rules = Rules {
            registries,
            max_images: Some(2),
            media: Media {
                disk: true,
                memory: false,
            },
            ..Rules::default()
        };
        for (pairs, read_only, expected) in [
            (&[("image", "ghcr.io/team/a")][..], false, Ok(None)),
            (&[("image", "a")], false, Err("allowedRegistries")),
            (&[("image", "a")], true, Err("allowedRegistries")),
            (
                &[("images", "ghcr.io/team/a,ghcr.io/b")],
                true,
                Err("allowedRegistries"),
            ),
            // A local image is no registry's; it has a rule of its own.
            (&[("image", "oci:/images/a")], true, Ok(None)),
            (
                &[("images", "oci:/images/a,oci:/images/b,oci:/images/c")],
                true,
                Err("maxImages"),
            ),
            (
                &[("image", "ghcr.io/team/a"), ("medium", "Memory")],
                false,
                Err("allowedMedia"),
            ),
        ] {
            assert_eq!(verdict(&rules, pairs, read_only), expected, "{pairs:?}");
        }
        let rules = Rules {
            read_only_only: true,
            media: Media {
                disk: false,
                memory: true,
            },
            ..Rules::default()
        };
        let image = &[("image", "a")];
        assert_eq!(verdict(&rules, image, false), Err("readOnlyOnly"));
        // It has no writable layer that could be anywhere.
        assert_eq!(verdict(&rules, image, true), Ok(None));
        let error = policy(Rules {
            read_only_only: false,
            ..rules
        })
        .admit(&attributes(image, false), false)
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "policy rule allowedMedia: the operator of this node does not allow writable layers on the disk"
        );
    }

    #[test]
    fn limits_have_a_default_and_a_maximum() {
        let rules = |default, maximum| Rules {
            disk: SizeRule { default, maximum },
            memory: SizeRule {
                default: Some(7),
                maximum: Some(8),
            },
            ..Rules::default()
        };
        for (default, maximum, asked, expected) in [
            (None, None, None, Ok(None)),
            (None, None, Some("5"), Ok(Some(5))),
            (Some(3), None, None, Ok(Some(3))),
            (Some(3), None, Some("5"), Ok(Some(5))),
            (Some(3), Some(5), Some("5"), Ok(Some(5))),
            (Some(3), Some(5), Some("6"), Err("sizeLimit")),
            (Some(3), Some(5), None, Ok(Some(3))),
            // No limit would be more than the largest.
            (None, Some(5), None, Ok(Some(5))),
        ] {
            let mut pairs = vec![("image", "a")];
            pairs.extend(asked.map(|asked| ("sizeLimit", asked)));
            let rules = rules(default, maximum);
            assert_eq!(
                verdict(&rules, &pairs, false),
                expected,
                "{default:?} {maximum:?} {asked:?}"
            );
            pairs.push(("medium", "Memory"));
            let in_memory = match asked {
                None => Ok(Some(7)),
                Some(asked) => Ok(Some(asked.parse().unwrap())),
            };
            assert_eq!(verdict(&rules, &pairs, false), in_memory);
            if asked.is_none() {
                let pairs = [("image", "a")];
                assert_eq!(verdict(&rules, &pairs, true), Ok(None), "none to limit");
            }
        }
        let pairs = [("image", "a"), ("medium", "Memory"), ("sizeLimit", "9")];
        assert_eq!(verdict(&rules(None, None), &pairs, false), Err("memory"));
    }

    #[test]
    fn local_images_are_confined_to_a_listed_directory() {
        for (image, root) in [
            ("oci:/images/app:1", Some("/images")),
            ("oci:/images", Some("/images")),
            ("oci-archive:/srv/oci/app.tar", Some("/srv/oci")),
            ("docker-archive:/srv/oci/app.tar", Some("/srv/oci")),
            ("oci:/images2/app", None),
            ("oci:/images/../etc", None),
            ("oci:images/app", None),
            ("oci:/srv/app", None),
            ("oci:/", None),
        ] {
            let source: Source = image.parse().unwrap();
            let found = policy(Rules::default()).source_root(&source).ok().flatten();
            assert_eq!(found.as_deref(), root.map(Path::new), "{image}");
        }
        let registry: Source = "registry.example/app:1".parse().unwrap();
        assert_eq!(policy(Rules::default()).source_root(&registry), Ok(None));
    }

    #[test]
    fn a_pod_chooses_a_union_only_within_what_the_operator_allows() {
        use UnionRequest::{Aufs, Auto, Overlay};
        for (asked, allowed, used) in [
            (Auto, Auto, Some(Auto)),
            (Aufs, Auto, Some(Aufs)),
            (Overlay, Auto, Some(Overlay)),
            (Auto, Aufs, Some(Aufs)),
            (Aufs, Aufs, Some(Aufs)),
            (Overlay, Aufs, None),
            (Auto, Overlay, Some(Overlay)),
            (Aufs, Overlay, None),
            (Overlay, Overlay, Some(Overlay)),
        ] {
            let policy = Policy {
                union: allowed,
                ..policy(Rules::default())
            };
            assert_eq!(policy.union(asked).ok(), used, "{asked:?} of {allowed:?}");
        }
    }

    #[test]
    fn a_policy_is_replaced_as_a_whole() {
        let live = LivePolicy::from(policy(Rules::default()));
        let before = live.now();
        let other = policy(Rules {
            max_images: Some(1),
            ..Rules::default()
        });
        live.clone().replace(other.clone());
        assert_eq!(*live.now(), other);
        assert_eq!(before.rules, Rules::default());
    }
}
