//! Names of branches in what the kernel says of a mount. Pure.

use crate::layer::store::BranchId;

/// Digits of a branch's name.
const DIGITS: usize = 32;

/// All names of branches in a text: each run of just so many hex digits. Paths may
/// have anything in front, be escaped or shortened; a name is whole or not there,
/// and nothing else is taken for one but by a chance of 2^-128.
pub(super) fn ids_in(text: &[u8]) -> Vec<BranchId> {
    text.split(|byte| !byte.is_ascii_hexdigit())
        .filter(|run| run.len() == DIGITS)
        .filter_map(|run| {
            let run = String::from_utf8(run.to_vec()).ok()?;
            BranchId::try_from(run).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_however_the_kernel_writes_the_path() {
        let (a, b) = (BranchId::of("a"), BranchId::of("b"));
        for text in [
            format!("rw,lowerdir+=/s/diff/{a},lowerdir+=/s/diff/{b},upperdir=/x"),
            format!("rw,lowerdir=/s/diff/{a}:/s/diff/{b}"),
            format!("/mnt/disk\\040one/s/diff/{a}=ro+wh\n/diff/{b}"),
            format!("{a}//{b}"),
        ] {
            assert_eq!(ids_in(text.as_bytes()), [a.clone(), b.clone()], "{text}");
        }
        // Of a volume, of a digest, of nothing.
        for text in [
            format!("/s/diff/{}", &a.as_str()[1..]),
            format!("/s/diff/{a}{b}"),
            a.as_str().to_uppercase() + "G",
            String::new(),
        ] {
            let upper = text.ends_with('G');
            assert_eq!(ids_in(text.as_bytes()), [], "{text} {upper}");
        }
    }
}
