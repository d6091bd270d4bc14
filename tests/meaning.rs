//! What a volume shows equals what OCI says the image is, path by path, on real
//! mounts: the hand-written cases, and random stacks against the model. Runs on
//! overlay, and on AUFS with `AUFS_CSI_BACKEND=aufs` where the kernel has it.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use aufs_csi::union::probe::UnionRequest;
use aufs_csi::volume::ErrorKind;
use proptest::prelude::*;
use std::path::PathBuf;
use support::cases::{Case, Expected, cases, further_cases, unsettled_cases};
use support::generate::{refused_stacks, stacks};
use support::inputs::NAMED;
use support::model::{ModelError, flatten};
use support::mutate::{self, Allowed};
use support::node::{TestNode, chain, union};
use support::property::{complain, drop_caches, for_all, mounted, same, shape};
use support::tree::{Compared, Tree, diff};

#[test]
fn every_case_of_the_table_comes_out_as_it_says() {
    let node = TestNode::new();
    let mut faults = Vec::new();
    let refused = unsettled_cases();
    let all = cases().into_iter().chain(further_cases()).chain(refused);
    for (number, case) in all.enumerate() {
        for read_only in [false, true] {
            let Case {
                name,
                layers,
                expected,
            } = &case;
            let id = format!("{number}-{read_only}");
            match (mounted(&node, &id, layers, read_only), expected) {
                (Ok(tree), Expected::Tree(expected)) => {
                    let lines = diff(expected, &tree, Compared::ALL);
                    if !lines.is_empty() {
                        faults.push(complain(name, &lines, layers));
                    }
                }
                (Err(text), Expected::Refused(words)) => {
                    for word in words {
                        if !text.contains(word) {
                            faults.push(format!("{name}: {text:?} does not name {word:?}"));
                        }
                    }
                }
                (Ok(_), Expected::Refused(_)) => faults.push(format!("{name}: mounted")),
                (Err(text), Expected::Tree(_)) => faults.push(format!("{name}: {text}")),
            }
            node.unpublish(&id);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// What has a meaning and is refused all the same (ADR 3): layers that no tool
/// writes. Rejecting too many of them fails the test.
fn refusal(text: String) -> Result<(), TestCaseError> {
    if NAMED.iter().any(|words| text.contains(words)) {
        Err(TestCaseError::reject(text))
    } else {
        Err(TestCaseError::fail(text))
    }
}

#[test]
fn random_stacks_look_like_the_model() {
    for_all(256, stacks(shape()), |node, id, layers| {
        let expected = flatten(&layers).expect("generated to have a meaning");
        for read_only in [true, false] {
            let id = format!("{id}{read_only}");
            if let Err(text) = mounted(node, &id, &layers, read_only) {
                return refusal(text);
            }
            same("mounted", &expected, node, &id, Compared::ALL, &layers)?;
            drop_caches();
            same(
                "after caches were dropped",
                &expected,
                node,
                &id,
                Compared::ALL,
                &layers,
            )?;
        }
        Ok(())
    });
}

/// Whether the error says what the model says: the words that name the fault, of
/// whoever finds it, the unpacker or sealing, and what it is about.
fn says(text: &str, why: &ModelError) -> bool {
    let (words, about): (&[&str], &str) = match why {
        // A directory that is replaced later is not told from nothing.
        ModelError::MissingTarget { link, .. } | ModelError::LinkToDirectory { link, .. } => (
            &[
                "which neither it nor a layer below it has",
                "which is not there",
                "which the same layer removes",
                "to the directory",
            ],
            link,
        ),
        ModelError::LinkLoop { .. } => (&["where links lead in a circle", "symbolic links"], ""),
        ModelError::WhiteoutOfNothing { path } => {
            (&["the whiteout names nothing in its directory"], path)
        }
        ModelError::InsideWhiteout { path } => (&["it is inside a whiteout"], path),
        ModelError::ParentComponent { path } => (&["it climbs above the root"], path),
        ModelError::RootIsNoDirectory => (&["the layer's root is not a directory"], ""),
        ModelError::EmptySymlink { path } => (&["it is empty"], path),
    };
    // Links of lower layers may have led the rest of the path elsewhere.
    let name = about.rsplit('/').next().unwrap_or_default();
    words.iter().any(|words| text.contains(words)) && text.contains(name)
}

/// Everything of the store that outlives a call, by name.
fn stored(node: &TestNode) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for part in ["diff", "layers", "images", "ingest", "volumes"] {
        let entries = std::fs::read_dir(node.path().join("store").join(part)).unwrap();
        // The lock of a volume's name is kept.
        let kept = entries.map(|entry| entry.unwrap().path());
        names.extend(kept.filter(|path| path.extension() != Some("lock".as_ref())));
    }
    names.sort();
    names
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    for_all(64, refused_stacks(shape()), |node, id, (layers, why)| {
        let source = node.image(id, &layers);
        // The self-test of the first call is no part of it.
        node.volumes.probe().unwrap();
        let before = stored(node);
        let Err(error) = node.publish(id, &source, false) else {
            return Err(TestCaseError::fail(format!("{why:?}: {layers:#?}")));
        };
        let text = chain(&error);
        if let (false, refused @ Err(TestCaseError::Reject(_))) =
            (says(&text, &why), refusal(text.clone()))
        {
            return refused;
        }
        prop_assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{}", &text);
        prop_assert!(
            says(&text, &why),
            "{why:?} is refused with {text:?}: {layers:#?}"
        );
        prop_assert_eq!(stored(node), before);
        prop_assert!(!node.target(id).exists());
        Ok(())
    });
}

#[test]
fn changes_through_the_mount_look_like_the_model() {
    let inputs = (stacks(shape()), mutate::intents(12));
    for_all(128, inputs, |node, id, (layers, intents)| {
        let is_aufs = union() == UnionRequest::Aufs;
        // A link group that a pod wrote is kept by a mounted AUFS alone, so each
        // second stack there is without, and the other one is not remounted.
        let remounts = !is_aufs || id.ends_with(['0', '2', '4', '6', '8']);
        let allowed = Allowed {
            xattrs: shape().xattrs,
            xattr_removal: !is_aufs,
            link_groups: !(is_aufs && remounts),
            ..Allowed::ALL
        };
        let tree = flatten(&layers).expect("generated to have a meaning");
        let (changes, mut expected) = mutate::plan(&tree, &intents, allowed);
        if let Err(text) = mounted(node, id, &layers, false) {
            return refusal(text);
        }
        for change in &changes {
            mutate::perform(&node.target(id), change).map_err(|error| {
                TestCaseError::fail(format!("{change:?}: {error}\n{layers:#?}"))
            })?;
        }
        if is_aufs {
            // It cuts the times that programs set to seconds, and a directory
            // that is copied is news to the one that it is in.
            mutate::forget_times(&mut expected, &tree, &changes);
        }
        let what = format!("changed by {changes:#?}");
        let check = |when: &str, expected: &Tree| {
            let what = format!("{what}{when}");
            same(&what, expected, node, id, Compared::ALL, &layers)
        };
        // AUFS shows the list that it has remembered for as long as it does.
        let stale = |change: &mutate::Change| matches!(change, mutate::Change::Chmod { .. });
        if !(is_aufs && changes.iter().any(stale)) {
            check("", &expected)?;
        }
        drop_caches();
        check(", caches dropped", &expected)?;
        if remounts {
            node.remount(id);
            if is_aufs {
                // Which writes into the writable layer's root; a publish sets
                // the time again.
                expected
                    .nodes
                    .entry(Vec::new())
                    .and_modify(|root| root.mtime = None);
            }
            check(", mounted again", &expected)?;
            drop_caches();
            check(", mounted again, caches dropped", &expected)?;
        }
        Ok(())
    });
}

#[test]
fn the_suite_says_what_it_runs_on() {
    println!("union: {:?}", union());
}
