//! The decision by its rules: cases for each, and properties of any store.

use super::*;
use proptest::prelude::*;

const NOW: u64 = 1_000_000;
const GIB: u64 = 1 << 30;

fn id(number: usize) -> BranchId {
    BranchId::of(&number.to_string())
}

fn branch(number: usize, bytes: u64) -> Branch {
    Branch {
        id: id(number),
        bytes,
        entries: 10,
        created: NOW - 5_000,
    }
}

fn image(name: &str, age: u64, branches: &[usize]) -> Image {
    Image {
        manifest: format!("sha256:{name}"),
        names: vec![name.to_owned()],
        used: NOW - age,
        branches: branches.iter().copied().map(id).collect(),
    }
}

fn volume(name: &str, manifest: &str, branches: &[usize]) -> Need {
    Need {
        who: format!("volume {name}"),
        images: BTreeSet::from([format!("sha256:{manifest}")]),
        branches: branches.iter().copied().map(id).collect(),
    }
}

/// A disk of 100 GiB of which so many are used.
fn disk(used: u64) -> Disk {
    Disk {
        bytes: 100 * GIB,
        bytes_free: (100 - used) * GIB,
        inodes: 0,
        inodes_free: 0,
    }
}

fn marks() -> Marks {
    Marks::default()
}

/// By name: what becomes of it.
fn verdicts(decisions: &[Decision]) -> Vec<(String, Verdict)> {
    let name = |decision: &Decision| match (&decision.subject, decision.names.first()) {
        (_, Some(name)) => name.clone(),
        (Subject::Image(manifest), None) => manifest.clone(),
        (Subject::Layer(_), None) => "layer".to_owned(),
    };
    decisions
        .iter()
        .map(|decision| (name(decision), decision.verdict.clone()))
        .collect()
}

fn said(list: &[(&str, Verdict)]) -> Vec<(String, Verdict)> {
    list.iter()
        .map(|(name, verdict)| ((*name).to_owned(), verdict.clone()))
        .collect()
}

/// Four images of 6 GiB each, `old` the least recently used; `shared` has a
/// branch of `old` and one of its own.
fn store(used: u64) -> Facts {
    Facts {
        now: NOW,
        disk: disk(used),
        branches: vec![
            branch(1, 6 * GIB),
            branch(2, 6 * GIB),
            branch(3, 6 * GIB),
            branch(4, 6 * GIB),
        ],
        images: vec![
            image("new", 10, &[4]),
            image("middle", 2_000, &[3]),
            image("shared", 3_000, &[1, 2]),
            image("old", 4_000, &[1]),
        ],
        needs: Vec::new(),
        doubt: None,
    }
}

#[test]
fn nothing_goes_below_the_high_mark() {
    let decisions = decide(&store(80), &marks(), Aim::Marks);
    assert_eq!(
        verdicts(&decisions),
        said(&[
            ("old", Verdict::Room),
            ("shared", Verdict::Room),
            ("middle", Verdict::Room),
            ("new", Verdict::Young(110)),
        ])
    );
}

#[test]
fn the_least_recently_used_goes_until_the_low_mark() {
    // 81 GiB of 100: 11 have to go. `old` alone frees nothing until `shared`
    // goes too, which frees both branches, and those are enough.
    let decisions = decide(&store(81), &marks(), Aim::Marks);
    assert_eq!(
        verdicts(&decisions),
        said(&[
            ("old", Verdict::Space),
            ("shared", Verdict::Space),
            ("middle", Verdict::Room),
            ("new", Verdict::Young(110)),
        ])
    );
    assert_eq!(decisions[0].branches, []);
    let both = BTreeSet::from_iter(decisions[1].branches.clone());
    assert_eq!(both, BTreeSet::from([id(1), id(2)]));
    assert_eq!(decisions[1].freed, 12 * GIB);
    // Two more have to, and the youngest is not enough: it stays all the same.
    let decisions = decide(&store(99), &marks(), Aim::Marks);
    assert_eq!(decisions[2].verdict, Verdict::Space);
    assert_eq!(decisions[3].verdict, Verdict::Young(110));
}

#[test]
fn inodes_run_out_too() {
    let mut facts = store(10);
    facts.disk.inodes = 100;
    facts.disk.inodes_free = 15;
    let decisions = decide(&facts, &marks(), Aim::Marks);
    let goes: Vec<bool> = decisions.iter().map(|it| it.verdict.goes()).collect();
    // 15 have to be freed, and a branch has 10.
    assert_eq!(goes, [true, true, false, false]);
}

#[test]
fn what_is_needed_stays_and_so_do_its_branches() {
    let mut facts = store(99);
    facts.needs = vec![volume("v", "old", &[1])];
    let decisions = decide(&facts, &marks(), Aim::All);
    assert_eq!(
        decisions[0].verdict,
        Verdict::Needed(vec!["volume v".to_owned()])
    );
    assert_eq!(decisions[1].verdict, Verdict::Asked);
    assert_eq!(decisions[1].branches, [id(2)]);
    // A branch that only a mount shows, of an image that may go.
    facts.needs = vec![Need {
        who: "a mount".to_owned(),
        branches: BTreeSet::from([id(3)]),
        ..Need::default()
    }];
    let decisions = decide(&facts, &marks(), Aim::Marks);
    assert_eq!(decisions[2].verdict, Verdict::Shared);
    assert_eq!(decisions[2].branches, []);
}

#[test]
fn the_maximum_age_needs_no_pressure_and_the_minimum_age_wins() {
    let marks = Marks {
        max_age: Some(Duration::from_secs(2_500)),
        min_age: Duration::from_secs(3_500),
        ..marks()
    };
    let decisions = decide(&store(1), &marks, Aim::Marks);
    assert_eq!(
        verdicts(&decisions),
        said(&[
            ("old", Verdict::Expired),
            ("shared", Verdict::Young(500)),
            ("middle", Verdict::Young(1_500)),
            ("new", Verdict::Young(3_490)),
        ])
    );
    // Its branch is another's as well.
    assert_eq!(decisions[0].branches, []);
}

/// For somebody who needs so much of the store's limit.
fn room(store: u64) -> Aim {
    Aim::Room { store, disk: 0 }
}

#[test]
fn who_says_how_much_of_the_disk_he_needs_gets_no_more_than_that() {
    // Below the low mark, with 60 GiB free of 100. The first two share a branch and
    // free 12 together.
    // And not down to the low mark where it is above that.
    let short = [(10, 0), (60, 0), (61, 2), (72, 2), (73, 3), (78, 3)].map(|it| (40, it));
    let full = [(10, 0), (25, 0), (26, 2), (37, 2), (38, 3)].map(|it| (75, it));
    for (used, (disk, count)) in short.into_iter().chain(full) {
        let aim = Aim::Room {
            store: 0,
            disk: disk * GIB,
        };
        let decisions = decide(&store(used), &marks(), aim);
        let goes = decisions.iter().filter(|it| it.verdict.goes());
        assert_eq!(goes.count(), count, "{disk} GiB, {used} % used");
    }
    let mut facts = store(40);
    facts.disk.inodes = 1_000_000;
    facts.disk.inodes_free = 10;
    let decisions = decide(&facts, &marks(), Aim::Room { store: 0, disk: 1 });
    assert!(decisions.iter().any(|it| it.verdict.goes()));
    let limited = Marks {
        max_size: Some(30 * GIB),
        ..marks()
    };
    // There are 24 GiB.
    for (more, count) in [(6, 0), (7, 2), (18, 2), (19, 3)] {
        // Its disk is above the low mark, which is nobody's need.
        let decisions = decide(&store(75), &limited, room(more * GIB));
        let goes = decisions.iter().filter(|it| it.verdict.goes());
        assert_eq!(goes.count(), count, "{more} GiB");
    }
}

#[test]
fn the_limit_counts_what_is_shared_once() {
    // 24 GiB in four branches, although the images have 30 together.
    let limited = |max: u64| Marks {
        max_size: Some(max),
        ..marks()
    };
    let goes = |max: u64, aim: Aim| {
        let decisions = decide(&store(10), &limited(max), aim);
        decisions.iter().filter(|it| it.verdict.goes()).count()
    };
    assert_eq!(goes(24 * GIB, Aim::Marks), 0);
    assert_eq!(goes(23 * GIB, Aim::Marks), 2);
    assert_eq!(goes(24 * GIB, room(GIB)), 2);
    assert_eq!(goes(24 * GIB, room(13 * GIB)), 3);
}

#[test]
fn who_is_out_of_space_below_the_low_mark_gets_all_that_may_go() {
    let decisions = decide(&store(10), &marks(), Aim::Short);
    let goes: Vec<bool> = decisions.iter().map(|it| it.verdict.goes()).collect();
    assert_eq!(goes, [true, true, true, false]);
    // And not more than needed above it.
    let decisions = decide(&store(75), &marks(), Aim::Short);
    let goes: Vec<bool> = decisions.iter().map(|it| it.verdict.goes()).collect();
    assert_eq!(goes, [true, true, false, false]);
}

#[test]
fn a_branch_of_no_image_goes_by_itself() {
    let mut facts = store(99);
    facts.images.remove(1);
    let decisions = decide(&facts, &marks(), Aim::Marks);
    let loose = decisions
        .iter()
        .find(|decision| decision.subject == Subject::Layer(id(3)))
        .unwrap();
    assert_eq!((loose.used, &loose.verdict), (NOW - 5_000, &Verdict::Space));
}

#[test]
fn in_doubt_nothing_goes() {
    let mut facts = store(99);
    facts.doubt = Some("a record cannot be read".to_owned());
    for aim in [Aim::Marks, Aim::All, Aim::Short, room(GIB)] {
        let decisions = decide(&facts, &marks(), aim);
        assert!(decisions.iter().all(|it| !it.verdict.goes()));
        assert_eq!(still_goes(&facts, &marks(), &decisions[0]), None);
    }
}

#[test]
fn what_was_used_or_shared_since_it_was_decided_stays() {
    let facts = store(99);
    let decisions = decide(&facts, &marks(), Aim::Marks);
    let old = &decisions[0];
    assert_eq!(still_goes(&facts, &marks(), old), Some(Vec::new()));
    let middle = &decisions[2];
    assert_eq!(still_goes(&facts, &marks(), middle), Some(vec![id(3)]));
    let mut used = facts.clone();
    used.images[1].used = NOW;
    assert_eq!(still_goes(&used, &marks(), middle), None);
    let mut needed = facts.clone();
    needed.needs = vec![volume("v", "middle", &[])];
    assert_eq!(still_goes(&needed, &marks(), middle), None);
    let mut shared = facts.clone();
    shared.images.push(image("more", 5_000, &[3]));
    assert_eq!(still_goes(&shared, &marks(), middle), Some(Vec::new()));
    let mut gone = facts;
    gone.images.remove(1);
    assert_eq!(still_goes(&gone, &marks(), middle), None);
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let branches = prop::collection::vec((0..20u64, 0..9_000u64), 1..12);
    branches.prop_flat_map(|sizes| {
        let count = sizes.len();
        let some = move || prop::collection::btree_set(0..count, 0..5);
        let images = prop::collection::vec((0..9_000u64, some()), 0..8);
        let needs = prop::collection::vec((0..8usize, some()), 0..4);
        (Just(sizes), images, needs, 1..100u64).prop_map(|(sizes, images, needs, used)| Facts {
            now: NOW,
            disk: disk(used),
            branches: sizes
                .iter()
                .enumerate()
                .map(|(number, (size, age))| Branch {
                    created: NOW - age,
                    ..branch(number, size * GIB)
                })
                .collect(),
            images: images
                .iter()
                .enumerate()
                .map(|(number, (age, branches))| {
                    let branches: Vec<usize> = branches.iter().copied().collect();
                    image(&number.to_string(), *age, &branches)
                })
                .collect(),
            needs: needs
                .iter()
                .map(|(number, branches)| {
                    let branches: Vec<usize> = branches.iter().copied().collect();
                    volume("v", &number.to_string(), &branches)
                })
                .collect(),
            doubt: None,
        })
    })
}

fn any_marks() -> impl Strategy<Value = Marks> {
    let max_size = prop::option::of(0..100u64);
    let max_age = prop::option::of(0..9_000u64);
    (1..=100u8, 0..=100u8, max_size, 0..5_000u64, max_age).prop_map(
        |(high, low, max_size, min_age, max_age)| Marks {
            high,
            low: low.min(high),
            max_size: max_size.map(|size| size * GIB),
            min_age: Duration::from_secs(min_age),
            max_age: max_age.map(Duration::from_secs),
        },
    )
}

fn any_aim() -> impl Strategy<Value = Aim> {
    prop_oneof![
        Just(Aim::Marks),
        Just(Aim::All),
        Just(Aim::Short),
        (0..20u64).prop_map(|need| room(need * GIB)),
        (0..120u64).prop_map(|need| Aim::Room {
            store: 0,
            disk: need * GIB
        }),
    ]
}

proptest! {
    #[test]
    fn the_rules_hold_for_any_store(
        facts in any_facts(),
        marks in any_marks(),
        aim in any_aim(),
    ) {
        let decisions = decide(&facts, &marks, aim);
        // Each thing once, the least recently used first.
        let order: Vec<u64> = decisions.iter().map(|it| it.used).collect();
        prop_assert!(order.is_sorted());
        let subjects: BTreeSet<&Subject> = decisions.iter().map(|it| &it.subject).collect();
        prop_assert_eq!(subjects.len(), decisions.len());
        let gone: Vec<&BranchId> = decisions.iter().flat_map(|it| &it.branches).collect();
        let unique: BTreeSet<&BranchId> = gone.iter().copied().collect();
        prop_assert_eq!(unique.len(), gone.len(), "a branch goes once");

        // 1: never what is needed.
        for need in &facts.needs {
            prop_assert!(need.branches.iter().all(|id| !unique.contains(id)));
            for decision in decisions.iter().filter(|it| it.verdict.goes()) {
                if let Subject::Image(manifest) = &decision.subject {
                    prop_assert!(!need.images.contains(manifest));
                }
            }
        }
        // And nothing of an image that stays.
        for image in &facts.images {
            let subject = Subject::Image(image.manifest.clone());
            let decision = decisions.iter().find(|it| it.subject == subject).unwrap();
            if !decision.verdict.goes() {
                prop_assert!(image.branches.iter().all(|id| !unique.contains(id)));
            }
        }
        let mut freed = 0;
        let need = |freed: u64| {
            let used = facts.disk.bytes - facts.disk.bytes_free;
            let low = facts.disk.bytes * u64::from(marks.low) / 100;
            let size = store_bytes(&facts.branches) - freed;
            if let Aim::Room { store, disk } = aim {
                let full = marks.max_size.is_some_and(|max| size + store > max);
                return full || facts.disk.bytes_free + freed < disk;
            }
            used - freed.min(used) > low || marks.max_size.is_some_and(|max| {
                size > max * u64::from(marks.low) / u64::from(marks.high)
            })
        };
        for decision in &decisions {
            let age = NOW - decision.used;
            match &decision.verdict {
                // 2, 3: the minimum age wins over all, the maximum age over space.
                verdict if verdict.goes() => {
                    prop_assert!(age >= marks.min_age.as_secs());
                    if *verdict == Verdict::Space && aim != Aim::Short {
                        // 4: not more than down to the low mark, or than somebody needs.
                        prop_assert!(need(freed), "{decision:?}");
                    }
                }
                Verdict::Room => {
                    prop_assert!(marks.max_age.is_none_or(|max| age < max.as_secs()));
                    prop_assert!(aim != Aim::All);
                }
                Verdict::Young(left) => {
                    prop_assert_eq!(age + left, marks.min_age.as_secs());
                }
                _ => {}
            }
            freed += decision.freed;
        }
        // Once something stays because there is room, nothing goes for space.
        let first = decisions.iter().position(|it| it.verdict == Verdict::Room);
        if let Some(first) = first {
            prop_assert!(decisions[first..].iter().all(|it| it.verdict != Verdict::Space));
        }
        // Looked at again, with nothing changed, each of them still goes, and what
        // it takes with it is nobody's else.
        for decision in decisions.iter().filter(|it| it.verdict.goes()) {
            let branches = still_goes(&facts, &marks, decision).expect("it goes");
            for id in branches {
                prop_assert!(facts.needs.iter().all(|need| !need.branches.contains(&id)));
            }
        }
    }
}
