//! Where the members of a tar are. Only headers are read, the data is skipped,
//! so that an archive of many gigabytes opens at once and its members can then
//! be read in any order and in parallel.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

#[cfg(any(test, feature = "testing"))]
pub mod check;
mod header;

use header::{BLOCK_BYTES, Header, Kind, PaxRecords};

/// The most members of an archive of images.
const MAX_MEMBERS: usize = 1 << 16;
/// The longest PAX header or long name, in bytes.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;
/// The longest name that is kept, in bytes. Names in archives of images have
/// up to 80; what is longer is nothing that is looked up.
const MAX_NAME_BYTES: usize = 512;
/// How many links are followed from a name.
const MAX_LINKS: usize = 8;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading the file failed.
    #[error("cannot read at byte {offset}")]
    Read {
        /// Where, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is compressed, so members cannot be found without unpacking it.
    #[error("it is compressed with {format}; decompress it first")]
    Compressed {
        /// With what.
        format: &'static str,
    },
    /// What should be a header is none.
    #[error("it is not a tar, or damaged: no valid header at byte {offset}")]
    Header {
        /// Where, in bytes.
        offset: u64,
    },
    /// It ends inside a member.
    #[error("it is cut off: the member at byte {offset} goes on behind its end")]
    Truncated {
        /// Where the member begins, in bytes.
        offset: u64,
    },
    /// It has too many members.
    #[error("it has more than {MAX_MEMBERS} members")]
    TooManyMembers,
    /// A PAX header or a long name is too long.
    #[error(
        "the extended header at byte {offset} has {size} bytes, more than {MAX_EXTENSION_BYTES}"
    )]
    ExtensionTooLong {
        /// Where, in bytes.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A PAX header is malformed.
    #[error("the extended header at byte {offset} is malformed")]
    Extension {
        /// Where, in bytes.
        offset: u64,
    },
    /// A member is stored with holes, which no tool does to images.
    #[error("the member at byte {offset} is sparse; create the archive without --sparse")]
    Sparse {
        /// Where, in bytes.
        offset: u64,
    },
    /// A link leads nowhere, out of the archive or in a circle.
    #[error("the link {name:?} does not lead to a file of the archive")]
    Link {
        /// Name of the link.
        name: String,
    },
}

#[derive(Debug)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// A hard link, or a symbolic one already taken from the root; none if it
    /// leads out of the archive.
    Link(Option<String>),
    /// A directory or something special.
    Other,
}

/// The members of an open tar, by name.
#[derive(Debug)]
pub(in crate::image) struct TarMembers {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

impl TarMembers {
    /// Reads all headers of `file`, which has `length` bytes.
    pub(super) fn list(file: File, length: u64) -> Result<Self, TarError> {
        let mut walk = Walk {
            file: &file,
            length,
            members: HashMap::new(),
            count: 0,
        };
        walk.run()?;
        let members = walk.members;
        Ok(TarMembers {
            file: Arc::new(file),
            members,
        })
    }

    /// The bytes of a member; none if there is none of that name. Links are followed.
    pub(super) fn open(&self, name: &str) -> Result<Option<Section>, TarError> {
        let Some(mut place) = normalise(&[], name) else {
            return Ok(None);
        };
        for followed in 0..=MAX_LINKS {
            match self.members.get(&place) {
                Some(Member::File { offset, size }) => {
                    return Ok(Some(Section {
                        file: Arc::clone(&self.file),
                        offset: *offset,
                        size: *size,
                        done: 0,
                    }));
                }
                Some(Member::Link(Some(target))) => place.clone_from(target),
                Some(Member::Other) | None if followed == 0 => return Ok(None),
                Some(Member::Link(None) | Member::Other) | None => break,
            }
        }
        Err(TarError::Link {
            name: crate::image::printable(name),
        })
    }
}

/// Extensions that apply to the next header.
#[derive(Debug, Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: PaxRecords,
}

struct Walk<'a> {
    file: &'a File,
    length: u64,
    members: HashMap<String, Member>,
    count: usize,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), TarError> {
        let mut offset = 0;
        let mut pending = Pending::default();
        // Some writers leave the two blocks of zeros at the end away.
        while offset < self.length || offset == 0 {
            if self.length - offset < BLOCK_BYTES as u64 {
                return Err(match offset {
                    0 => self.not_a_tar(),
                    _ => TarError::Truncated { offset },
                });
            }
            let mut block = [0; BLOCK_BYTES];
            self.read(&mut block, offset)?;
            if block.iter().all(|byte| *byte == 0) {
                break;
            }
            let Some(header) = Header::parse(&block) else {
                return Err(match offset {
                    0 => self.not_a_tar(),
                    _ => TarError::Header { offset },
                });
            };
            self.count += 1;
            if self.count > MAX_MEMBERS {
                return Err(TarError::TooManyMembers);
            }
            offset = self.member(offset, &header, &mut pending)?;
        }
        Ok(())
    }

    /// Takes the member whose header is at `at`; gives the place of the next.
    fn member(&mut self, at: u64, header: &Header, pending: &mut Pending) -> Result<u64, TarError> {
        let data = at + BLOCK_BYTES as u64;
        if header.kind.is_extension() {
            let bytes = self.extension(at, header)?;
            match header.kind {
                Kind::LongName => pending.long_name = Some(until_nul(&bytes).to_vec()),
                Kind::LongLink => pending.long_link = Some(until_nul(&bytes).to_vec()),
                Kind::Pax => {
                    pending.pax =
                        PaxRecords::parse(&bytes).ok_or(TarError::Extension { offset: at })?;
                }
                // Global headers say nothing about places.
                _ => {}
            }
            return self.after(at, data, header.size);
        }
        let Pending {
            long_name,
            long_link,
            pax,
        } = std::mem::take(pending);
        if pax.sparse || header.kind == Kind::Sparse {
            return Err(TarError::Sparse { offset: at });
        }
        let size = match header.kind {
            Kind::File | Kind::Unknown => pax.size.unwrap_or(header.size),
            _ => 0,
        };
        let next = self.after(at, data, size)?;
        let name = pax.path.or(long_name).unwrap_or_else(|| header.name());
        let link = pax.link_path.or(long_link).unwrap_or_else(|| header.link());
        let Some(name) = std::str::from_utf8(&name)
            .ok()
            .filter(|name| name.len() <= MAX_NAME_BYTES)
            .and_then(|name| normalise(&[], name))
        else {
            return Ok(next);
        };
        let link = std::str::from_utf8(&link)
            .ok()
            .filter(|link| link.len() <= MAX_NAME_BYTES);
        let member = match header.kind {
            Kind::File => Member::File { offset: data, size },
            Kind::HardLink => Member::Link(link.and_then(|link| normalise(&[], link))),
            Kind::Symlink => {
                let mut directory: Vec<&str> = name.split('/').collect();
                directory.pop();
                let target = link.filter(|link| !link.starts_with('/'));
                Member::Link(target.and_then(|target| normalise(&directory, target)))
            }
            _ => Member::Other,
        };
        // As when a tar is unpacked, the last of several wins.
        self.members.insert(name, member);
        Ok(next)
    }

    fn extension(&self, at: u64, header: &Header) -> Result<Vec<u8>, TarError> {
        if header.size > MAX_EXTENSION_BYTES {
            return Err(TarError::ExtensionTooLong {
                offset: at,
                size: header.size,
            });
        }
        // The bound also makes the conversion exact.
        let mut bytes = vec![0; usize::try_from(header.size).unwrap_or(0)];
        if at + BLOCK_BYTES as u64 + header.size > self.length {
            return Err(TarError::Truncated { offset: at });
        }
        self.read(&mut bytes, at + BLOCK_BYTES as u64)?;
        Ok(bytes)
    }

    /// Where the next header is, behind `size` bytes at `data` and their padding.
    fn after(&self, at: u64, data: u64, size: u64) -> Result<u64, TarError> {
        let end = data.checked_add(size).filter(|end| *end <= self.length);
        let end = end.ok_or(TarError::Truncated { offset: at })?;
        // Padding that the very last member lacks is not missed.
        Ok(end.next_multiple_of(BLOCK_BYTES as u64).min(self.length))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), TarError> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|source| TarError::Read { offset, source })
    }

    fn not_a_tar(&self) -> TarError {
        let mut start = [0; 6];
        let known = self.file.read_exact_at(&mut start, 0).is_ok();
        match crate::image::compression_of(&start) {
            Some(format) if known => TarError::Compressed { format },
            _ => TarError::Header { offset: 0 },
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

/// `path` seen from `directory`, without `.` and `..` and doubled slashes; none
/// if it is empty or leads out.
fn normalise(directory: &[&str], path: &str) -> Option<String> {
    let mut components = directory.to_vec();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    (!components.is_empty()).then(|| components.join("/"))
}

/// The bytes of one member. Reading does not move any shared position.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    size: u64,
    done: u64,
}

impl Section {
    /// How many bytes the member has.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.size - self.done).unwrap_or(usize::MAX);
        let wanted = rest.min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self
            .file
            .read_at(&mut buffer[..wanted], self.offset + self.done)?;
        if count == 0 {
            // The archive was truncated after it was listed.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.done += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
