//! Parser of `/proc/<pid>/mountinfo`, see `proc_pid_mountinfo(5)`. Pure: bytes
//! in, entries out. Paths are bytes, not UTF-8.
//!
//! The text is the kernel's, but parts of it are chosen by whoever mounts
//! something on the node, so a malformed line is an error and never a panic.

#[cfg(any(test, feature = "testing"))]
use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::MountFlags;

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount, unique while it lives.
    pub id: u64,
    /// Id of the mount it is attached to.
    pub parent: u64,
    /// Device number of the superblock as major and minor.
    pub device: (u32, u32),
    /// Path inside the filesystem that the mount shows.
    pub root: PathBuf,
    /// Where it is attached, as this process sees it.
    pub mount_point: PathBuf,
    /// Flags of this mount alone.
    pub flags: MountFlags,
    /// Peer group, if the mount is shared.
    pub shared: Option<u64>,
    /// Filesystem type.
    pub fs_type: OsString,
    /// What was mounted; filesystems without a device say anything.
    pub source: OsString,
    /// Whether the superblock is read-only.
    pub super_read_only: bool,
    /// Options of the superblock after `rw` or `ro`, separated by commas, with
    /// the escapes that the filesystem wrote.
    pub options: OsString,
}

impl MountEntry {
    /// The options one by one, as key and value.
    pub fn option_pairs(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.options
            .as_bytes()
            .split(|byte| *byte == b',')
            .filter(|option| !option.is_empty())
            .map(
                |option| match option.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&option[..at], Some(&option[at + 1..])),
                    None => (option, None),
                },
            )
    }

    /// The first value of the option `key`.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&[u8]> {
        self.option_pairs()
            .find(|(name, _)| *name == key.as_bytes())
            .and_then(|(_, value)| value)
    }

    /// Whether `key` is among the options, with a value or without.
    #[must_use]
    pub fn has_option(&self, key: &str) -> bool {
        self.option_pairs().any(|(name, _)| name == key.as_bytes())
    }
}

/// A line that is not what `proc_pid_mountinfo(5)` describes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the mount table: {fault}")]
pub struct ParseError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text ends inside the line.
    #[error("the line has no end")]
    Truncated,
    /// A field is absent.
    #[error("no {0}")]
    Missing(&'static str),
    /// A number is not one, or too large.
    #[error("{0} is not a number")]
    Number(&'static str),
    /// The device number lacks its colon.
    #[error("the device number has no colon")]
    Device,
    /// A backslash without three octal digits of one byte.
    #[error("a bad octal escape in {0}")]
    Escape(&'static str),
    /// A path or type that is empty or holds a NUL.
    #[error("{0} is empty or holds a NUL")]
    Text(&'static str),
    /// The options begin neither with `rw` nor with `ro`.
    #[error("{0} begin neither with rw nor with ro")]
    ReadWrite(&'static str),
    /// More fields than the format has.
    #[error("there is a field too many")]
    Excess,
}

/// Parses a whole mount table.
pub fn parse(text: &[u8]) -> Result<Vec<MountEntry>, ParseError> {
    let mut entries = Vec::new();
    for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let parsed = match line.split_last() {
            Some((b'\n', line)) => parse_line(line),
            _ => Err(Fault::Truncated),
        };
        entries.push(parsed.map_err(|fault| ParseError {
            line: index + 1,
            fault,
        })?);
    }
    Ok(entries)
}

/// Parses the line of one mount alone, which in a table of a thousand lines
/// costs a fraction of parsing them all.
pub fn parse_one(text: &[u8], id: u64) -> Result<Option<MountEntry>, ParseError> {
    let prefix = format!("{id} ");
    let mut lines = text.split(|byte| *byte == b'\n').enumerate();
    lines
        .find(|(_, line)| line.starts_with(prefix.as_bytes()))
        .map(|(index, line)| {
            parse_line(line).map_err(|fault| ParseError {
                line: index + 1,
                fault,
            })
        })
        .transpose()
}

fn parse_line(line: &[u8]) -> Result<MountEntry, Fault> {
    // Fields are separated by exactly one space, and spaces inside are
    // escaped. A source may be the empty string, hence no skipping of runs.
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |name| fields.next().ok_or(Fault::Missing(name));
    let id = number(next("mount id")?, "mount id")?;
    let parent = number(next("parent id")?, "parent id")?;
    let device = device(next("device number")?)?;
    let root = unescape(next("root")?, "root")?;
    let mount_point = unescape(next("mount point")?, "mount point")?;
    let flags = mount_flags(next("mount options")?)?;
    let mut shared = None;
    loop {
        match next("separator")? {
            b"-" => break,
            tag => {
                if let Some(group) = tag.strip_prefix(b"shared:") {
                    shared = Some(number(group, "peer group")?);
                }
            }
        }
    }
    let fs_type = unescape(next("filesystem type")?, "filesystem type")?;
    let source = unescape_any(next("source")?, "source")?;
    let (super_read_only, options) = read_only_first(next("super options")?, "super options")?;
    let options = OsString::from_vec(options.to_vec());
    if fields.next().is_some() {
        return Err(Fault::Excess);
    }
    Ok(MountEntry {
        id,
        parent,
        device,
        root: PathBuf::from(root),
        mount_point: PathBuf::from(mount_point),
        flags,
        shared,
        fs_type,
        source,
        super_read_only,
        options,
    })
}

fn number(text: &[u8], name: &'static str) -> Result<u64, Fault> {
    if text.is_empty() {
        return Err(Fault::Number(name));
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte
            .checked_sub(b'0')
            .filter(|digit| *digit < 10)
            .ok_or(Fault::Number(name))?;
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(Fault::Number(name))
    })
}

fn device(text: &[u8]) -> Result<(u32, u32), Fault> {
    let colon = text
        .iter()
        .position(|byte| *byte == b':')
        .ok_or(Fault::Device)?;
    let part = |text| {
        u32::try_from(number(text, "device number")?).map_err(|_| Fault::Number("device number"))
    };
    Ok((part(&text[..colon])?, part(&text[colon + 1..])?))
}

fn read_only_first<'a>(text: &'a [u8], name: &'static str) -> Result<(bool, &'a [u8]), Fault> {
    let (first, rest) = match text.iter().position(|byte| *byte == b',') {
        Some(comma) => (&text[..comma], &text[comma + 1..]),
        None => (text, &text[text.len()..]),
    };
    match first {
        b"ro" => Ok((true, rest)),
        b"rw" => Ok((false, rest)),
        _ => Err(Fault::ReadWrite(name)),
    }
}

fn mount_flags(text: &[u8]) -> Result<MountFlags, Fault> {
    let (read_only, rest) = read_only_first(text, "mount options")?;
    let mut flags = MountFlags {
        read_only,
        ..MountFlags::default()
    };
    for option in rest.split(|byte| *byte == b',') {
        match option {
            b"nosuid" => flags.nosuid = true,
            b"nodev" => flags.nodev = true,
            b"noexec" => flags.noexec = true,
            _ => {}
        }
    }
    Ok(flags)
}

fn unescape(text: &[u8], name: &'static str) -> Result<OsString, Fault> {
    let text = unescape_any(text, name)?;
    if text.is_empty() {
        return Err(Fault::Text(name));
    }
    Ok(text)
}

/// Decodes `\040` and its like; the kernel writes space, tab, newline,
/// backslash and `#` so.
fn unescape_any(text: &[u8], name: &'static str) -> Result<OsString, Fault> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            decoded.push(*byte);
            continue;
        }
        let digits = rest.get(..3).ok_or(Fault::Escape(name))?;
        let mut value = 0_u8;
        for digit in digits {
            let digit = digit
                .checked_sub(b'0')
                .filter(|digit| *digit < 8)
                .ok_or(Fault::Escape(name))?;
            value = value
                .checked_mul(8)
                .and_then(|value| value.checked_add(digit))
                .ok_or(Fault::Escape(name))?;
        }
        decoded.push(value);
        rest = &rest[3..];
    }
    if decoded.contains(&0) {
        return Err(Fault::Text(name));
    }
    Ok(OsString::from_vec(decoded))
}

/// Writes an entry as the kernel would, in its canonical form. The inverse of
/// [`parse`] up to the optional fields and flags that it does not keep.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn render(entry: &MountEntry) -> Vec<u8> {
    let mut line = format!(
        "{} {} {}:{} ",
        entry.id, entry.parent, entry.device.0, entry.device.1
    )
    .into_bytes();
    line.extend(escape(entry.root.as_os_str()));
    line.push(b' ');
    line.extend(escape(entry.mount_point.as_os_str()));
    line.extend(format!(" {}", entry.flags).into_bytes());
    if let Some(group) = entry.shared {
        line.extend(format!(" shared:{group}").into_bytes());
    }
    line.extend(b" - ");
    line.extend(escape(&entry.fs_type));
    line.push(b' ');
    line.extend(escape(&entry.source));
    line.extend(if entry.super_read_only {
        b" ro"
    } else {
        b" rw"
    });
    if !entry.options.is_empty() {
        line.push(b',');
        line.extend(entry.options.as_bytes());
    }
    line.push(b'\n');
    line
}

#[cfg(any(test, feature = "testing"))]
fn escape(text: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                escaped.extend(format!("\\{byte:03o}").into_bytes());
            }
            _ => escaped.push(*byte),
        }
    }
    escaped
}

/// What must hold for every text, for fuzzing: no panic, and what was parsed
/// survives being written and parsed again.
#[cfg(any(test, feature = "testing"))]
pub fn check(text: &[u8]) {
    let Ok(entries) = parse(text) else { return };
    for entry in &entries {
        let first = entries.iter().find(|other| other.id == entry.id);
        assert_eq!(
            parse_one(text, entry.id).as_ref().map(Option::as_ref),
            Ok(first),
            "one line is parsed as the whole table is"
        );
    }
    let rendered: Vec<u8> = entries.iter().flat_map(render).collect();
    assert_eq!(
        parse(&rendered).as_ref(),
        Ok(&entries),
        "a table that was parsed parses again when written"
    );
    assert_eq!(
        entries.len(),
        text.iter().filter(|byte| **byte == b'\n').count(),
        "every line is an entry"
    );
}

/// Mount tables to start mutations from.
#[cfg(any(test, feature = "testing"))]
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "",
        "24 1 254:0 / / rw,noatime shared:1 - ext4 /dev/root rw,discard,errors=remount-ro\n",
        concat!(
            "36 24 0:32 /a\\040b /mnt/with\\134back\\011tab rw,nosuid,nodev,noexec,relatime ",
            "master:3 propagate_from:2 unbindable - tmpfs  ro\n",
            "40 24 0:33 / /run/u ro,nosuid,nodev,relatime - aufs none ",
            "rw,si=be25cf93054a0ca1,xino=/run/x,dio,dirperm1\n",
        ),
        "41 24 0:4 net:[4026531840] /run/netns/x rw - nsfs nsfs rw\n",
        concat!(
            "421 24 0:4 / /other rw - proc proc rw\n",
            "42 24 0:50 / /v rw - overlay overlay rw,lowerdir+=/a\\072b,lowerdir+=/c,",
            "upperdir=/u,workdir=/w\n",
            "42 24 0:50 / /v//deleted rw shared:7 master:8 - fuse.sshfs#x a\\043b ro,\n",
        ),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REAL: &str = "\
24 1 254:0 / / rw,noatime shared:1 - ext4 /dev/root rw,discard,errors=remount-ro
36 24 0:32 /a\\040b /mnt/with\\134back\\011tab rw,nosuid,nodev,noexec,relatime master:3 propagate_from:2 unbindable - tmpfs  ro
40 24 0:33 / /run/u ro,nosuid,nodev,relatime - aufs none rw,si=be25cf93054a0ca1,xino=/run/x,dio,dirperm1
41 24 0:4 net:[4026531840] /run/netns/x rw - nsfs nsfs rw
";

    #[test]
    fn a_real_table_is_read_field_by_field() {
        let entries = parse(REAL.as_bytes()).unwrap();
        assert_eq!(entries.len(), 4);
        assert_eq!(
            entries[0],
            MountEntry {
                id: 24,
                parent: 1,
                device: (254, 0),
                root: "/".into(),
                mount_point: "/".into(),
                flags: MountFlags::default(),
                shared: Some(1),
                fs_type: "ext4".into(),
                source: "/dev/root".into(),
                super_read_only: false,
                options: "discard,errors=remount-ro".into(),
            }
        );
        assert_eq!(entries[1].root, PathBuf::from("/a b"));
        assert_eq!(
            entries[1].mount_point,
            PathBuf::from("/mnt/with\\back\ttab")
        );
        assert_eq!(entries[1].source, OsString::new());
        assert!(entries[1].super_read_only && entries[1].options.is_empty());
        assert!(entries[1].flags.noexec && !entries[1].flags.read_only);
        assert_eq!(entries[1].shared, None);
        assert_eq!(entries[2].flags, MountFlags::volume(true));
        assert_eq!(entries[2].option("si"), Some(&b"be25cf93054a0ca1"[..]));
        assert!(entries[2].has_option("dio") && !entries[2].has_option("di"));
        assert_eq!(entries[2].option("dio"), None);
        assert_eq!(entries[3].root, PathBuf::from("net:[4026531840]"));
    }

    #[test]
    fn paths_need_not_be_utf8() {
        let entries = parse(b"1 0 0:1 /\xff /\xfe\\012 rw - t s rw\n").unwrap();
        assert_eq!(entries[0].root.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(entries[0].mount_point.as_os_str().as_bytes(), b"/\xfe\n");
    }

    #[test]
    fn every_fault_is_told_with_its_line() {
        let cases: [(&str, Fault); 18] = [
            ("1 0 0:1 / / rw - t s rw", Fault::Truncated),
            ("\n", Fault::Number("mount id")),
            ("1\n", Fault::Missing("parent id")),
            ("x 0 0:1 / / rw - t s rw\n", Fault::Number("mount id")),
            ("1 -1 0:1 / / rw - t s rw\n", Fault::Number("parent id")),
            (
                "99999999999999999999 0 0:1 / / rw - t s rw\n",
                Fault::Number("mount id"),
            ),
            ("1 0 01 / / rw - t s rw\n", Fault::Device),
            (
                "1 0 0:4294967296 / / rw - t s rw\n",
                Fault::Number("device number"),
            ),
            ("1 0 0:1 /\\04 / rw - t s rw\n", Fault::Escape("root")),
            (
                "1 0 0:1 / /\\048 rw - t s rw\n",
                Fault::Escape("mount point"),
            ),
            (
                "1 0 0:1 / /\\777 rw - t s rw\n",
                Fault::Escape("mount point"),
            ),
            ("1 0 0:1 / /\\000 rw - t s rw\n", Fault::Text("mount point")),
            ("1 0 0:1  / rw - t s rw\n", Fault::Text("root")),
            (
                "1 0 0:1 / / x - t s rw\n",
                Fault::ReadWrite("mount options"),
            ),
            (
                "1 0 0:1 / / rw shared:x - t s rw\n",
                Fault::Number("peer group"),
            ),
            ("1 0 0:1 / / rw t s rw\n", Fault::Missing("separator")),
            ("1 0 0:1 / / rw - t s\n", Fault::Missing("super options")),
            ("1 0 0:1 / / rw - t s rw more\n", Fault::Excess),
        ];
        for (line, fault) in cases {
            let text = format!("{REAL}{line}");
            assert_eq!(
                parse(text.as_bytes()),
                Err(ParseError { line: 5, fault }),
                "{line:?}"
            );
        }
    }

    #[test]
    fn one_line_is_found_by_its_id() {
        let found = |id| parse_one(REAL.as_bytes(), id).unwrap();
        assert_eq!(found(40).unwrap().mount_point, PathBuf::from("/run/u"));
        assert_eq!(found(4), None);
        assert_eq!(found(400), None);
        let broken = format!("{REAL}7 x\n");
        assert_eq!(parse_one(broken.as_bytes(), 7).unwrap_err().line, 5);
        assert!(parse_one(broken.as_bytes(), 24).is_ok());
    }

    #[test]
    fn an_empty_table_is_empty() {
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn the_table_of_this_machine_is_read() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        assert!(!parse(&text).unwrap().is_empty());
        check(&text);
    }

    proptest! {
        #[test]
        fn any_bytes_pass_the_check(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            check(&text);
        }

        #[test]
        fn a_damaged_table_passes_the_check(
            at in 0..REAL.len(),
            byte in any::<u8>(),
            cut in 0..REAL.len(),
        ) {
            let mut text = REAL.as_bytes().to_vec();
            text[at] = byte;
            check(&text);
            text.truncate(cut);
            check(&text);
        }

        #[test]
        fn any_path_survives(
            bytes in proptest::collection::vec(1..=255_u8, 1..40),
            options in "[a-z=,]{0,20}",
        ) {
            let entry = MountEntry {
                id: 1,
                parent: 2,
                device: (3, 4),
                root: PathBuf::from(OsString::from_vec(bytes.clone())),
                mount_point: PathBuf::from(OsString::from_vec(bytes.clone())),
                flags: MountFlags::volume(true),
                shared: Some(5),
                fs_type: "overlay".into(),
                source: OsString::from_vec(bytes),
                super_read_only: true,
                options: options.into(),
            };
            prop_assert_eq!(parse(&render(&entry)), Ok(vec![entry]));
        }
    }
}
