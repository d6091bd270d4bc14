//! Running a program that knows credentials: kubelet's credential providers and
//! Docker's credential helpers, the only programs that are ever executed.
//!
//! It gets its request on standard input and has a bounded time and a bounded
//! answer. What it answers is wiped, and is in no error; what it says on standard
//! error is for the log.
#![expect(
    clippy::disallowed_methods,
    reason = "credentials that only another program knows come from that program"
)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Largest answer in bytes.
pub(super) const MAX_OUTPUT: usize = 1 << 20;
/// How much of standard error is kept for the log, in bytes.
const MAX_COMPLAINT: usize = 4096;
/// How often a program is looked at that has closed its output and still runs.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often a program is started again that is just being written. It can be by
/// this process: a file is open in any other thread's child until that executes
/// its own program.
const START_TRIES: usize = 10;
/// How long to wait until then.
const START_EVERY: Duration = Duration::from_millis(20);

/// What is to be run.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) program: &'a OsStr,
    pub(super) args: &'a [String],
    /// Beside this process's own environment.
    pub(super) env: &'a [(String, String)],
    pub(super) input: &'a [u8],
    pub(super) timeout: Duration,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) output: Zeroizing<Vec<u8>>,
    /// The beginning of what it wrote to standard error.
    pub(super) complaint: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExecError {
    #[error("cannot be run: {0}")]
    Start(String),
    #[error("timed out after {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("gave more than {MAX_OUTPUT} bytes")]
    TooMuch,
    #[error("cannot be talked to: {0}")]
    Talk(String),
}

/// Runs a program to its end, or ends it with all that it has started.
pub(super) fn run(call: &Call<'_>) -> Result<Ended, ExecError> {
    let mut running = Running {
        child: start(call)?,
        is_waited_for: false,
    };
    let until = Instant::now() + call.timeout;
    let child = &mut running.child;
    if let Some(mut input) = child.stdin.take() {
        // A request is smaller than a pipe, so that this waits for nothing. Who
        // does not want it may close it.
        match input.write_all(call.input) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(talk(&error)),
            _ => {}
        }
    }
    let mut pipes = Pipes {
        output: child.stdout.take(),
        complaint: child.stderr.take(),
        // All the room that there can be, for growing would leave copies behind.
        // It is memory only as far as it is used.
        read: Zeroizing::new(Vec::with_capacity(MAX_OUTPUT)),
        said: Vec::new(),
    };
    while pipes.output.is_some() || pipes.complaint.is_some() {
        pipes.take(until, call.timeout)?;
    }
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| talk(&error))? {
            running.is_waited_for = true;
            break status;
        }
        if Instant::now() >= until {
            return Err(ExecError::TimedOut(call.timeout));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    Ok(Ended {
        status,
        output: pipes.read,
        complaint: String::from_utf8_lossy(&pipes.said).into_owned(),
    })
}

fn start(call: &Call<'_>) -> Result<Child, ExecError> {
    for _ in 1..START_TRIES {
        match command(call).spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(START_EVERY);
            }
            result => return result.map_err(|error| ExecError::Start(error.to_string())),
        }
    }
    command(call)
        .spawn()
        .map_err(|error| ExecError::Start(error.to_string()))
}

fn command(call: &Call<'_>) -> Command {
    let mut command = Command::new(call.program);
    command
        .args(call.args)
        .envs(call.env.iter().map(|(name, value)| (name, value)))
        // In a group of its own, so that it ends with all that it has started.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn talk(error: &io::Error) -> ExecError {
    ExecError::Talk(error.to_string())
}

/// A program that does not outlive the wish for its answer.
struct Running {
    child: Child,
    is_waited_for: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Until it is waited for, its number and its group are nobody else's, also
        // where it has ended itself and left others.
        if self.is_waited_for {
            return;
        }
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = group.map(|group| kill_process_group(group, Signal::KILL)) {
            tracing::warn!(%error, "cannot end a program that was asked for credentials");
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "cannot wait for a program that was asked for credentials");
        }
    }
}

/// What comes out of a program.
struct Pipes {
    output: Option<ChildStdout>,
    complaint: Option<ChildStderr>,
    read: Zeroizing<Vec<u8>>,
    said: Vec<u8>,
}

impl Pipes {
    /// Waits for something and takes it.
    fn take(&mut self, until: Instant, timeout: Duration) -> Result<(), ExecError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ExecError::TimedOut(timeout));
        }
        let (output, complaint) = self.wait(left)?;
        let mut chunk = Zeroizing::new([0; 4096]);
        if let Some(pipe) = self.output.as_mut().filter(|_| output) {
            let count = read(pipe, &mut *chunk)?;
            if self.read.len() + count > MAX_OUTPUT {
                return Err(ExecError::TooMuch);
            }
            self.read.extend_from_slice(&chunk[..count]);
            if count == 0 {
                self.output = None;
            }
        }
        if let Some(pipe) = self.complaint.as_mut().filter(|_| complaint) {
            let count = read(pipe, &mut *chunk)?;
            let room = MAX_COMPLAINT - self.said.len();
            self.said.extend_from_slice(&chunk[..count.min(room)]);
            if count == 0 {
                self.complaint = None;
            }
        }
        Ok(())
    }

    /// Which of the two have something, or have ended.
    fn wait(&self, left: Duration) -> Result<(bool, bool), ExecError> {
        let left = Timespec::try_from(left).map_err(|error| ExecError::Talk(error.to_string()))?;
        let mut waited = Vec::with_capacity(2);
        waited.extend(self.output.as_ref().map(|pipe| wanted(pipe)));
        waited.extend(self.complaint.as_ref().map(|pipe| wanted(pipe)));
        match poll(&mut waited, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(talk(&error.into())),
        }
        let mut ready = waited.iter().map(|pipe| !pipe.revents().is_empty());
        let mut next = |is_open: bool| is_open && ready.next().unwrap_or(false);
        Ok((next(self.output.is_some()), next(self.complaint.is_some())))
    }
}

fn wanted<Fd: AsFd>(pipe: &Fd) -> PollFd<'_> {
    PollFd::new(pipe, PollFlags::IN)
}

fn read(pipe: &mut impl Read, chunk: &mut [u8]) -> Result<usize, ExecError> {
    loop {
        match pipe.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(|error| talk(&error)),
        }
    }
}

/// Programs for tests.
#[cfg(test)]
pub(super) mod scripts {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    /// Writes a shell script that can be executed.
    pub(in crate::image::credentials) fn write(dir: &Path, name: &str, body: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn run_script(dir: &Path, body: &str, timeout: Duration) -> Result<Ended, ExecError> {
        let program = scripts::write(dir, "program", body);
        run(&Call {
            program: program.as_os_str(),
            args: &["one".to_owned(), "t wo".to_owned()],
            env: &[("FROM_TEST".to_owned(), "value".to_owned())],
            input: b"request",
            timeout,
        })
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_gets_its_request_and_gives_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let body = r#"echo "$1/$2/$FROM_TEST/${PATH:+path}/$(cat)"; echo complaint >&2; exit 3"#;
        let ended = run_script(dir.path(), body, LONG).unwrap();
        assert_eq!(*ended.output, b"one/t wo/value/path/request\n");
        assert_eq!(ended.complaint, "complaint\n");
        assert_eq!(ended.status.code(), Some(3));
        // Who does not read it and is gone at once.
        assert!(
            run_script(dir.path(), "exec 0<&-; exit 0", LONG)
                .unwrap()
                .status
                .success()
        );
    }

    #[test]
    fn nothing_lasts_longer_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(300);
        let pid = dir.path().join("pid");
        for body in [
            "echo $$ > PID; exec sleep 100",
            // It has closed all, and stays.
            "echo $$ > PID; exec >&- 2>&-; exec sleep 100",
            // It has left somebody who has its output.
            "sleep 100 & echo $! > PID; exit 0",
            "trap '' TERM; sleep 100 & echo $! > PID; wait",
        ] {
            let started = Instant::now();
            let body = body.replace("PID", pid.to_str().unwrap());
            let error = run_script(dir.path(), &body, short).err();
            assert_eq!(error, Some(ExecError::TimedOut(short)), "{body}");
            assert!(started.elapsed() < Duration::from_secs(20), "{body}");
            let number = std::fs::read_to_string(&pid).unwrap();
            let stat = Path::new("/proc").join(number.trim()).join("stat");
            while let Ok(stat) = std::fs::read_to_string(&stat) {
                // Until the one that adopts it has waited for it.
                if stat.contains(") Z ") {
                    break;
                }
                assert!(started.elapsed() < LONG, "{body}: {stat}");
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    #[test]
    fn an_answer_and_a_complaint_have_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let error = run_script(dir.path(), "exec cat /dev/zero", LONG).err();
        assert_eq!(error, Some(ExecError::TooMuch));
        let body = "head -c 1000000 /dev/zero | tr '\\0' x >&2; head -c 1048576 /dev/zero";
        let ended = run_script(dir.path(), body, LONG).unwrap();
        assert_eq!(ended.output.len(), MAX_OUTPUT);
        assert_eq!(ended.complaint.len(), MAX_COMPLAINT);
    }

    #[test]
    fn a_program_that_is_not_there_is_named_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let call = |program: &Path| {
            let result = run(&Call {
                program: program.as_os_str(),
                args: &[],
                env: &[],
                input: b"",
                timeout: LONG,
            });
            result.err().unwrap().to_string()
        };
        let none = dir.path().join("none");
        assert!(call(&none).starts_with("cannot be run: No such file"));
        std::fs::write(&none, "").unwrap();
        assert!(call(&none).starts_with("cannot be run: Permission denied"));
    }
}
