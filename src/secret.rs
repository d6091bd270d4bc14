//! Passwords and tokens: wiped when they are dropped, and shown by nothing. And
//! the process that has them: its memory is read by nobody and written nowhere.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

/// A password or token.
///
/// **Invariant:** no log line, error, record or metric has it: there is no
/// `Display`, no `Serialize`, and `Debug` shows nothing of it. Our copy of the
/// bytes is overwritten on drop. What a library copies on its way to the wire is
/// beyond that.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; whoever had it has it no more.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// The text itself, for the request that it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret::new(text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_string(SecretVisitor)
    }
}

struct SecretVisitor;

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }
}

/// Keeps the memory of this process to itself: no core file is written of it, not
/// even by a handler of the node's, and no process of the same user can trace it
/// or read `/proc/<pid>/mem` or `environ`. Only who may trace anything still can
/// (`CAP_SYS_PTRACE`). Called once, when the program begins.
///
/// A program that is executed later can be dumped again, for the kernel decides
/// that anew then, but writes no core file: the limit stays.
pub fn keep_memory_private() {
    if let Err(error) = make_private() {
        // No log is open yet. Nothing depends on it but what an attacker, who
        // runs as this user already, can do more easily.
        eprintln!("aufs-csi: cannot keep this process from being dumped: {error}");
    }
}

fn make_private() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Lowering both is allowed to everybody.
    setrlimit(Resource::Core, none)?;
    // The files of /proc/self belong to the root of the user namespace then; a
    // process may use its own all the same, and in a rootless store it is that
    // root.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_line_has_nothing_of_it() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("hunter")
                .count(),
            0
        );
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn it_is_read_from_a_text_and_nothing_else() {
        let read = serde_json::from_str::<Secret>;
        assert_eq!(read(r#""hunter\u0032""#).unwrap().expose(), "hunter2");
        assert!(read("2").is_err() && read("null").is_err());
        assert!(read(r#""""#).unwrap().is_empty());
    }

    #[test]
    fn a_process_that_keeps_its_memory_private_cannot_be_dumped() {
        const INSIDE: &str = "AUFS_CSI_TEST_INSIDE";
        // Of the whole process, so that it is another one than that of the other
        // tests. It is this test again, which finds itself inside.
        if std::env::var_os(INSIDE).is_some() {
            keep_memory_private();
            let dumpable = rustix::process::dumpable_behavior().unwrap();
            assert_eq!(dumpable, DumpableBehavior::NotDumpable);
            let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Core);
            assert_eq!((current, maximum), (Some(0), Some(0)));
            // What the program itself reads of itself.
            for path in [
                "/proc/self/mountinfo",
                "/proc/self/uid_map",
                "/proc/thread-self/mountinfo",
                "/proc/self/fdinfo/0",
                "/proc/self/status",
            ] {
                std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
            std::fs::metadata("/proc/self/ns/mnt").unwrap();
            let dir = std::fs::File::open("/").unwrap();
            let path = format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&dir));
            assert!(std::fs::read_dir(path).unwrap().next().is_some());
            return;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "only another process can have another state"
        )]
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("secret::tests::a_process_that_keeps_its_memory_private_cannot_be_dumped")
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }
}
