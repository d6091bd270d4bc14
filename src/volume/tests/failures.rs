//! Any call of the kernel may fail, once or from some moment on. What comes of it
//! must be a whole volume, or an error after which it can be asked for again and
//! taken away; and after an error that is final for kubelet, which forgets the
//! volume then, nothing at all.

use super::*;
use crate::csi::status::code;
use tonic::Code;

/// Places of others, which no failure of ours may touch.
const OTHERS: [&str; 2] = ["/somebody/first", "/somebody/second"];

/// Those that mean something of their own first.
const ERRORS: [Errno; 4] = [Errno::BUSY, Errno::INVAL, Errno::IO, Errno::NOSPC];

/// How often a call fails: not at all the same for what waits and what gives up.
const TIMES: [usize; 3] = [1, 3, usize::MAX];

fn nodes(owner: Owner) -> Vec<(&'static str, Node)> {
    vec![
        ("aufs", Node::aufs(owner)),
        ("aufs ro", Node::new(UnionRequest::Aufs, 2, true, owner)),
        ("overlay", Node::overlay(owner)),
        (
            "overlay ro",
            Node::new(UnionRequest::Overlay, 2, true, owner),
        ),
        ("bind", Node::new(UnionRequest::Overlay, 1, true, owner)),
    ]
}

fn a_host() -> Arc<FakeHost> {
    let host = FakeHost::new();
    for at in OTHERS {
        host.mount(Path::new(at), &foreign()).unwrap();
    }
    Arc::new(host)
}

fn others() -> Vec<PathBuf> {
    OTHERS.map(PathBuf::from).to_vec()
}

/// Whether kubelet asks for the volume's end after this error.
fn is_final(error: &VolumeError) -> bool {
    !matches!(
        code(error.kind()),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// What is done, with a call that fails.
type Act = fn(&Node, &Volumes) -> Result<(), VolumeError>;

fn publish(node: &Node, volumes: &Volumes) -> Result<(), VolumeError> {
    node.publish(volumes).map(drop)
}

/// Every failure of every call that `act` makes after `prepare`. `judge` is told
/// whether it went well.
fn every_failure(
    owner: Owner,
    prepare: impl Fn(&Node, &Volumes, &FakeHost),
    act: Act,
    judge: impl Fn(&Node, &Volumes, &Arc<FakeHost>, Result<(), VolumeError>, &str),
) -> usize {
    let mut count = 0;
    for (name, node) in nodes(owner) {
        let begin = |host: &Arc<FakeHost>| {
            let volumes = node.open(host);
            prepare(&node, &volumes, host);
            host.clear_calls();
            volumes
        };
        let host = a_host();
        let volumes = begin(&host);
        act(&node, &volumes).unwrap();
        let calls: Vec<Call> = host
            .calls()
            .into_iter()
            .filter(|call| !matches!(call, Call::Pause(_)))
            .collect();
        judge(&node, &volumes, &host, Ok(()), name);
        for (nth, call) in calls.iter().enumerate() {
            // What a command's volume is treated like is little else.
            let errors = match owner {
                Owner::Plugin => &ERRORS[..],
                Owner::Command => &ERRORS[..2],
            };
            for &errno in errors {
                for times in TIMES {
                    let host = a_host();
                    let volumes = begin(&host);
                    host.fail(|call| !matches!(call, Call::Pause(_)), nth, times, errno);
                    let result = act(&node, &volumes);
                    host.heal();
                    let what = format!(
                        "{name}: {errno:?} × {times} from call {nth}, {call:?}: {}",
                        result.as_ref().map_or_else(text, |()| String::from("good"))
                    );
                    for at in others() {
                        assert!(host.mounted().contains(&at), "{what}");
                    }
                    judge(&node, &volumes, &host, result, &what);
                    count += 1;
                }
            }
        }
    }
    count
}

/// Takes the volume away, in a way that differs from one case to the next.
fn take_away(node: &Node, volumes: &Volumes, host: &Arc<FakeHost>, what: &str) {
    node.unpublish(volumes)
        .unwrap_or_else(|error| panic!("{what}: {}", text(&error)));
    node.is_clear(host, &others(), what);
}

/// A volume that is mounted, or an error and what must be right after it.
fn judge_publish(
    node: &Node,
    volumes: &Volumes,
    host: &Arc<FakeHost>,
    result: Result<(), VolumeError>,
    what: &str,
) {
    match result {
        Ok(()) => {
            let expected = [others(), vec![node.target()]].concat();
            assert_eq!(node.mounted(host), expected, "{what}");
            assert_eq!(node.record().state, VolumeState::Mounted, "{what}");
        }
        Err(error) => {
            if is_final(&error) {
                node.is_clear(host, &others(), what);
            }
            // Asked for again, or not, or only after a restart.
            match what.len() % 3 {
                0 => assert!(node.publish(volumes).is_ok(), "{what}"),
                1 => {}
                _ => {
                    let volumes = node.open(host);
                    volumes.recover(&node.kubelet()).unwrap();
                    node.is_clear(host, &others(), what);
                }
            }
        }
    }
    take_away(node, volumes, host, what);
}

#[test]
fn of_publishing() {
    for owner in [Owner::Plugin, Owner::Command] {
        let count = every_failure(
            owner,
            |_, _, _| {},
            publish,
            |node, volumes, host, result, what| {
                if owner == Owner::Command && result.is_err() {
                    // Recovery is the plugin's.
                    take_away(node, volumes, host, what);
                } else {
                    judge_publish(node, volumes, host, result, what);
                }
            },
        );
        println!("{owner:?}: {count} failures");
        assert!(count > 300, "{count}");
    }
}

#[test]
fn of_unpublishing() {
    for owner in [Owner::Plugin, Owner::Command] {
        let count = every_failure(
            owner,
            |node, volumes, _| publish(node, volumes).unwrap(),
            |node, volumes| node.unpublish(volumes),
            |node, volumes, host, result, what| {
                if let Err(error) = result {
                    assert!(
                        node.volume().join("record.json").exists(),
                        "{what}: without a record nobody knows what is left"
                    );
                    drop(error);
                } else {
                    node.is_clear(host, &others(), what);
                }
                // Again, by the same process or by the next.
                match what.len() % 2 {
                    0 => take_away(node, volumes, host, what),
                    _ => take_away(node, &node.open(host), host, what),
                }
            },
        );
        println!("{owner:?}: {count} failures");
        assert!(count > 100, "{count}");
    }
}

#[test]
fn of_asking_for_a_volume_that_is_mounted() {
    let count = every_failure(
        Owner::Plugin,
        |node, volumes, _| publish(node, volumes).unwrap(),
        publish,
        |node, volumes, host, result, what| {
            // kubelet asks so for every volume when it restarts, and must not
            // forget one that is in use.
            if let Err(error) = result {
                assert!(!is_final(&error), "{what}");
            }
            assert!(node.keeps_all(), "{what}");
            let expected = [others(), vec![node.target()]].concat();
            assert_eq!(node.mounted(host), expected, "{what}");
            assert!(node.publish(volumes).unwrap().existed, "{what}");
            take_away(node, volumes, host, what);
        },
    );
    println!("{count} failures");
    assert!(count > 20, "{count}");
}

#[test]
fn of_mounting_a_volume_again() {
    let count = every_failure(
        Owner::Plugin,
        |node, volumes, host| {
            publish(node, volumes).unwrap();
            if !node.read_only {
                fs::write(node.volume().join("upper/written"), "by the pod").unwrap();
            }
            host.unmount(&node.target()).unwrap();
        },
        publish,
        |node, volumes, host, result, what| {
            if let Err(error) = result {
                assert!(!is_final(&error), "{what}");
                assert!(node.keeps_all(), "{what}");
                node.publish(volumes)
                    .unwrap_or_else(|error| panic!("{what}: {}", text(&error)));
            }
            let expected = [others(), vec![node.target()]].concat();
            assert_eq!(node.mounted(host), expected, "{what}");
            assert!(node.keeps_all(), "{what}");
            if !node.read_only {
                let written = fs::read(node.volume().join("upper/written"));
                assert_eq!(written.unwrap(), b"by the pod", "{what}");
            }
            take_away(node, volumes, host, what);
        },
    );
    println!("{count} failures");
    assert!(count > 100, "{count}");
}

#[test]
fn of_clearing_away_what_a_killed_process_left() {
    let count = every_failure(
        Owner::Plugin,
        |node, volumes, _| {
            publish(node, volumes).unwrap();
            node.change_record(|record| record.state = VolumeState::Intended);
        },
        publish,
        judge_publish,
    );
    println!("{count} failures");
    assert!(count > 500, "{count}");
}

#[test]
fn of_recovery() {
    let count = every_failure(
        Owner::Plugin,
        |node, volumes, _| {
            publish(node, volumes).unwrap();
            node.change_record(|record| record.state = VolumeState::Leaving);
        },
        |node, volumes| volumes.recover(&node.kubelet()).map(drop),
        |node, volumes, host, _, what| {
            // What could not be taken away is tried again, and once it can be.
            volumes.reap(&node.kubelet(), Duration::ZERO).unwrap();
            node.is_clear(host, &others(), what);
        },
    );
    println!("{count} failures");
    assert!(count > 100, "{count}");
}
