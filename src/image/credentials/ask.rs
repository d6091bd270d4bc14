//! Asking a person for a password.

use super::CredentialError;
use crate::secret::Secret;
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use zeroize::Zeroizing;

/// Longest password in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Reads a password: the first line of standard input, without its end. A person
/// at a terminal is asked for it with `prompt`, and it is not shown there.
pub(super) fn ask_password(prompt: &str) -> Result<Secret, CredentialError> {
    let input = io::stdin();
    let input = input.as_fd();
    let silence = Silence::start(input).map_err(CredentialError::Password)?;
    if silence.is_some() {
        // The prompt is for the person, not for who reads the output.
        eprint!("{}: ", crate::image::printable(prompt));
        let _ = io::stderr().flush();
    }
    let result = read_line(&mut Unbuffered(input));
    if silence.is_some() {
        // The end of the line that the person has typed was not shown either.
        eprintln!();
    }
    drop(silence);
    result.map_err(CredentialError::Password)
}

/// Standard input without the library's buffer, which nobody wipes.
struct Unbuffered<'a>(BorrowedFd<'a>);

impl Read for Unbuffered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::read(self.0, &mut *buffer)
        })?)
    }
}

fn read_line(input: &mut impl Read) -> io::Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    let mut byte = Zeroizing::new([0]);
    loop {
        if input.read(&mut *byte)? == 0 || byte[0] == b'\n' {
            break;
        }
        if line.len() == MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        line.push(byte[0]);
    }
    let text = std::str::from_utf8(&line)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?
        .trim_end_matches('\r');
    if text.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(Secret::new(text.to_owned()))
}

/// A terminal that does not show what is typed, for a while.
struct Silence<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Silence<'a> {
    /// None where it is no terminal.
    fn start(terminal: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        if !isatty(terminal) {
            return Ok(None);
        }
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Some(Silence { terminal, before }))
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let read = |bytes: &[u8]| {
            let mut bytes = bytes;
            read_line(&mut bytes).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(read(b"pass word\nmore").unwrap(), "pass word");
        assert_eq!(read(b"pass\r\n").unwrap(), "pass");
        assert_eq!(read(b"pass").unwrap(), "pass");
        assert!(read(b"").is_err() && read(b"\nmore").is_err() && read(b"\xff\n").is_err());
        assert!(read(&vec![b'a'; MAX_BYTES + 1]).is_err());
    }
}
