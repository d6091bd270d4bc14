//! Several images as one tree: what it is, and what a union of all their branches
//! needs on top to show it.
//!
//! Each image is sealed on its own. The merged tree is what an overlay of the
//! flattened images would show, if none of them had a marker: from the uppermost
//! image on, directories merge until an image has something else under that name,
//! and what is no directory hides all below it. A directory has the metadata of
//! the uppermost image, of those that merge there, that says something of it.
//!
//! The union of the images' branches shows the same nearly everywhere. Where it
//! does not (a whiteout of an upper image hides something of a lower one; a
//! directory is only implied by an upper image; on AUFS, something lies beneath
//! the directories of different images that hides one of them), a further branch on
//! top of all, the *correction*, has what is missing, and hides what is too much.
//! So no branch is ever made anew because of other images, and whatever the reason
//! of a difference is, it is found by comparing what is shown with what should be.
//!
//! A directory that several images have is in the union once, at its uppermost
//! place; what that changes further down is corrected in the same way. An inode
//! that the correction has a copy of has all its names there.

use super::content::Content;
use super::walk::Streams;
use super::{Format, SealError};
use crate::layer::index::{Attrs, Builder, Index, Node, Record, is_below, parent};
use std::fs::File;
use std::io;

/// One branch of a stack of images.
#[derive(Debug, Clone)]
pub struct Member {
    /// What is in it.
    pub content: Content,
    /// Its image, 0 the lowest.
    pub image: usize,
    /// The uppermost member that is the same directory; often itself.
    pub twin: usize,
}

/// Several images, sealed for one format.
#[derive(Debug)]
pub struct Images<'a> {
    /// The format of all branches.
    pub format: Format,
    /// Their branches, lowest first.
    pub members: &'a [Member],
    /// What each image says of its root, lowest first; nothing if it is implied.
    pub roots: &'a [Option<Attrs>],
}

/// One path of the merged tree, or what is missing or too much there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A directory with its metadata; none if no image says anything of it.
    Directory {
        /// Its path; the root is left out.
        path: Vec<u8>,
        /// Its metadata.
        attrs: Option<Attrs>,
    },
    /// Anything else.
    Other {
        /// Which member has it.
        member: usize,
        /// What that says of it; its path is also that in the branch.
        record: Record,
    },
    /// What is to be hidden.
    Hidden {
        /// Its path.
        path: Vec<u8>,
    },
}

impl Images<'_> {
    /// Metadata of the merged root.
    pub fn root(&self) -> Option<Attrs> {
        self.roots.iter().rev().find_map(Clone::clone)
    }

    /// Lists the merged tree of the lowest `count` members, as if they were all,
    /// parents before children; the root is left out.
    pub fn merge<E: From<SealError>>(
        &self,
        count: usize,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let members = &self.members[..count];
        let mut streams = Streams::new(&indexes(members, None))?;
        let mut frames: Vec<(Vec<u8>, Vec<bool>)> = Vec::new();
        while let Some((path, records)) = streams.next()? {
            if path.is_empty() {
                continue;
            }
            while frames.last().is_some_and(|(dir, _)| !is_below(&path, dir)) {
                frames.pop();
            }
            let (dir, live) = match frames.last() {
                Some((dir, live)) => (&dir[..], live.clone()),
                None => (&b""[..], vec![true; members.len()]),
            };
            if parent(&path) != dir {
                continue;
            }
            let found = self.wanted(members, &records, &live);
            match found.what {
                What::Nothing => {}
                What::Other(member) => {
                    let record = records.into_iter().nth(member).flatten();
                    let record = record.unwrap_or_default();
                    each(Piece::Other { member, record })?;
                }
                What::Directory(attrs) => {
                    each(Piece::Directory {
                        path: path.clone(),
                        attrs,
                    })?;
                    frames.push((path, found.live));
                }
            }
        }
        Ok(())
    }

    /// Lists what a branch needs on top of the union so that the union shows the
    /// merged tree, parents before children. In the union are the members from
    /// `from` on that are their own twins, and lowest, if there is one, the branch
    /// `flat` that was made of the other members by [`Images::merge`]: each of its
    /// records has the member as its `seq`.
    ///
    /// # Errors
    /// Of `each`, and [`SealError::Index`] where an index or a temporary file of
    /// `scratch` cannot be read or written.
    pub fn correct<E: From<SealError>>(
        &self,
        from: usize,
        flat: Option<&Index>,
        scratch: &dyn Fn() -> io::Result<File>,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let io = |result: io::Result<_>| result.map_err(SealError::index(0));
        let mut groups = Groups {
            builder: Builder::new(io(scratch())?),
            members: vec![false; self.members.len()],
        };
        let mut any = false;
        let comparing = Comparing {
            images: self,
            from,
            flat,
            copied: None,
        };
        comparing.run::<SealError>(|piece| {
            any = true;
            if let Piece::Other { member, record } = &piece {
                groups.add(*member, record).map_err(SealError::index(0))?;
            }
            Ok(())
        })?;
        if !any {
            return Ok(());
        }
        let index = io(scratch()).map(|file| groups.builder.finish(file))?;
        let copied = index.map_err(SealError::index(0))?;
        let comparing = Comparing {
            copied: Some((copied, groups.members)),
            ..comparing
        };
        comparing.run(&mut each)
    }

    /// What the merged tree has under a name, given the members that take part in
    /// the directory.
    fn wanted(&self, members: &[Member], records: &[Option<Record>], live: &[bool]) -> Found {
        let mut found = Found::nothing(members.len());
        let mut end = members.len();
        while end > 0 {
            let image = members[end - 1].image;
            let start = members[..end]
                .iter()
                .rposition(|member| member.image != image)
                .map_or(0, |below| below + 1);
            let branches = (start..end).rev().filter(|member| live[*member]);
            let one = look(
                self.format,
                branches.map(|at| (at, members[at].content.marked, records[at].as_ref())),
                members.len(),
            );
            end = start;
            match one.what {
                What::Nothing => {}
                What::Other(member) => {
                    if let What::Nothing = found.what {
                        found.what = What::Other(member);
                    }
                    break;
                }
                What::Directory(attrs) => {
                    let said = match found.what {
                        What::Directory(Some(said)) => Some(said),
                        _ => attrs,
                    };
                    found.what = What::Directory(said);
                    for (all, own) in found.live.iter_mut().zip(&one.live) {
                        *all |= own;
                    }
                }
            }
        }
        found
    }
}

fn indexes(members: &[Member], flat: Option<&Index>) -> Vec<Index> {
    let own = members.iter().map(|member| member.content.index.clone());
    own.chain(flat.cloned()).collect()
}

/// What is under a name.
#[derive(Debug)]
enum What {
    Nothing,
    /// Of this branch.
    Other(usize),
    /// With what the uppermost branch says of it.
    Directory(Option<Attrs>),
}

/// What a lookup finds.
#[derive(Debug)]
struct Found {
    what: What,
    /// The branches that take part in the directory, if there is one, or were one
    /// on top.
    live: Vec<bool>,
}

impl Found {
    fn nothing(count: usize) -> Self {
        Found {
            what: What::Nothing,
            live: vec![false; count],
        }
    }
}

/// What a union of these branches, uppermost first, finds for a name: `walk` says
/// how they look it up. With each, whether its index tells the markers on disk.
fn look<'a>(
    format: Format,
    branches: impl Iterator<Item = (usize, bool, Option<&'a Record>)>,
    count: usize,
) -> Found {
    let mut found = Found::nothing(count);
    for (at, marked, record) in branches {
        let Some(record) = record else { continue };
        if marked && record.whiteout {
            break;
        }
        match &record.node {
            None | Some(Node::ForeignLink { .. }) => {}
            Some(node @ (Node::Directory { .. } | Node::Implied)) => {
                if let What::Nothing = found.what {
                    found.what = What::Directory(match node {
                        Node::Directory { attrs, .. } => Some(attrs.clone()),
                        _ => None,
                    });
                }
                found.live[at] = true;
                if marked && record.opaque {
                    break;
                }
            }
            Some(_) => {
                if let What::Nothing = found.what {
                    found.what = What::Other(at);
                }
                match format {
                    // Directories further down join one above, past this.
                    Format::Aufs => {}
                    Format::Overlay | Format::OverlayUser => break,
                }
            }
        }
    }
    found
}

/// Inodes of which there is a copy.
struct Groups {
    builder: Builder,
    members: Vec<bool>,
}

impl Groups {
    fn key(member: usize, inode: u64) -> Vec<u8> {
        format!("{member:x} {inode:x}").into_bytes()
    }

    fn add(&mut self, member: usize, record: &Record) -> io::Result<()> {
        let Some(inode) = record.node.as_ref().and_then(Node::inode) else {
            return Ok(());
        };
        self.members[member] = true;
        self.builder.push(&Record {
            path: Self::key(member, inode),
            whiteout: true,
            ..Record::default()
        })
    }
}

/// A directory around the current path, in the merged tree.
struct Frame {
    path: Vec<u8>,
    attrs: Attrs,
    /// Which members make up what should be in it.
    wanted: Vec<bool>,
    /// Which branches of the union take part in it.
    shown: Vec<bool>,
    /// Whether the correction has it.
    corrected: bool,
}

struct Comparing<'a> {
    images: &'a Images<'a>,
    from: usize,
    flat: Option<&'a Index>,
    copied: Option<(Index, Vec<bool>)>,
}

impl Comparing<'_> {
    fn is_in_union(&self, member: usize) -> bool {
        member >= self.from && self.images.members[member].twin == member
    }

    fn run<E: From<SealError>>(
        &self,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let members = self.images.members;
        let mut streams = Streams::new(&indexes(members, self.flat))?;
        let mut shown: Vec<bool> = (0..members.len()).map(|at| self.is_in_union(at)).collect();
        shown.push(true);
        let mut frames = vec![Frame {
            path: Vec::new(),
            attrs: self.images.root().unwrap_or_else(Attrs::implied),
            wanted: vec![true; members.len()],
            shown,
            corrected: true,
        }];
        while let Some((path, records)) = streams.next()? {
            if path.is_empty() {
                continue;
            }
            while frames.len() > 1 && frames.last().is_some_and(|dir| !is_below(&path, &dir.path)) {
                frames.pop();
            }
            let Some(dir) = frames.last() else { break };
            if parent(&path) != dir.path {
                // Beneath something that is no directory.
                continue;
            }
            let wanted = self.images.wanted(members, &records, &dir.wanted);
            let shown = self.shown(&records, &dir.shown);
            match (wanted.what, shown.what) {
                (What::Nothing, What::Nothing) => {}
                (What::Nothing, _) => {
                    make_room(&mut frames, &mut each)?;
                    each(Piece::Hidden { path })?;
                }
                (What::Other(member), what) => {
                    let flat = records.get(members.len()).and_then(Option::as_ref);
                    let origin = match what {
                        What::Other(at) if at < members.len() => Some(at),
                        What::Other(_) => flat.map(|record| record.seq as usize),
                        What::Nothing | What::Directory(_) => None,
                    };
                    let record = records[member].clone().unwrap_or_default();
                    if origin != Some(member) || self.is_copied(member, &record)? {
                        make_room(&mut frames, &mut each)?;
                        each(Piece::Other { member, record })?;
                    }
                }
                (What::Directory(attrs), what) => {
                    let attrs = attrs.unwrap_or_else(Attrs::implied);
                    let fits = match what {
                        What::Directory(shown) => shown.unwrap_or_else(Attrs::implied) == attrs,
                        What::Nothing | What::Other(_) => false,
                    };
                    if !fits {
                        make_room(&mut frames, &mut each)?;
                        each(Piece::Directory {
                            path: path.clone(),
                            attrs: Some(attrs.clone()),
                        })?;
                    }
                    let frame = Frame {
                        path,
                        attrs,
                        wanted: wanted.live,
                        shown: shown.live,
                        corrected: !fits,
                    };
                    if self.is_alike(&streams, &frame) {
                        for stream in 0..members.len() {
                            if streams.has_below(stream, &frame.path) {
                                streams.skip_below(stream, &frame.path)?;
                            }
                        }
                    } else {
                        frames.push(frame);
                    }
                }
            }
        }
        Ok(())
    }

    /// What the union finds under a name.
    fn shown(&self, records: &[Option<Record>], live: &[bool]) -> Found {
        let members = self.images.members;
        let own = (0..members.len())
            .rev()
            .map(|at| (at, members[at].content.marked, records[at].as_ref()));
        let flat = records.get(members.len()).map(Option::as_ref);
        let all = own
            .chain(flat.map(|record| (members.len(), false, record)))
            .filter(|(at, ..)| live[*at]);
        look(self.images.format, all, members.len() + 1)
    }

    fn is_copied(&self, member: usize, record: &Record) -> Result<bool, SealError> {
        let Some((copied, members)) = &self.copied else {
            return Ok(false);
        };
        match record.node.as_ref().and_then(Node::inode) {
            Some(inode) if members[member] => copied
                .get(&Groups::key(member, inode))
                .map(|found| found.is_some())
                .map_err(SealError::index(member)),
            _ => Ok(false),
        }
    }

    /// Whether only one branch has anything beneath a directory, and that is both
    /// wanted and shown.
    fn is_alike(&self, streams: &Streams, dir: &Frame) -> bool {
        let members = self.images.members;
        if self.flat.is_some() && streams.has_below(members.len(), &dir.path) {
            return false;
        }
        let mut having = (0..members.len())
            .rev()
            .filter(|at| streams.has_below(*at, &dir.path));
        let Some(top) = having.next() else {
            return false;
        };
        let copied = self.copied.as_ref();
        dir.wanted[top]
            && dir.shown[top]
            && having.all(|at| members[at].twin == top)
            && copied.is_none_or(|(_, copied)| !copied[top])
    }
}

/// Has the correction have the directories around what comes next.
fn make_room<E>(
    frames: &mut [Frame],
    each: &mut impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    for frame in frames.iter_mut().filter(|frame| !frame.corrected) {
        frame.corrected = true;
        each(Piece::Directory {
            path: frame.path.clone(),
            attrs: Some(frame.attrs.clone()),
        })?;
    }
    Ok(())
}
