//! The structures that the plan is made of, as `c/preload.h` declares them:
//! native 64-bit integers, each at the place that the assertions here and there
//! name.

use std::mem::offset_of;

/// What a plan begins with.
pub(crate) const MAGIC: &[u8; 8] = b"HSHAREX1";
/// A flag: say on stderr what was shared.
pub(crate) const REPORT: u64 = 1;

/// Where an extent's bytes come from.
pub(crate) const FROM_HEADER: u64 = 0;
pub(crate) const FROM_FILE: u64 = 1;
pub(crate) const FROM_ZEROS: u64 = 2;

/// Structures of 64-bit integers, and their bytes.
macro_rules! structures {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: u64),*
        }

        impl $name {
            /// The structure as it lies in memory.
            pub(crate) fn to_bytes(&self) -> [u8; size_of::<$name>()] {
                let mut bytes = [0; size_of::<$name>()];
                $(
                    let at = offset_of!($name, $field);
                    bytes[at..at + size_of::<u64>()].copy_from_slice(&self.$field.to_ne_bytes());
                )*
                bytes
            }
        }
    )*};
}

structures! {
    /// The plan's head; the files follow it.
    struct Head {
        magic,
        bytes,
        files,
        flags,
        max_mappings,
    }

    /// A file; what is `_at` is an offset in the plan.
    struct File {
        device,
        inode,
        size,
        mtime,
        mtime_ns,
        page,
        len,
        header_at,
        header_len,
        extents_at,
        extents,
        runs_at,
        runs,
        path_at,
    }

    /// Logical bytes with one origin.
    struct Extent {
        at,
        len,
        kind,
        from,
    }

    /// Logical pages that are pages of the stored file.
    struct Run {
        at,
        from,
        len,
    }
}

const _: () = {
    assert!(size_of::<Head>() == 40 && align_of::<Head>() == 8);
    assert!(offset_of!(Head, magic) == 0);
    assert!(offset_of!(Head, bytes) == 8);
    assert!(offset_of!(Head, files) == 16);
    assert!(offset_of!(Head, flags) == 24);
    assert!(offset_of!(Head, max_mappings) == 32);

    assert!(size_of::<File>() == 112 && align_of::<File>() == 8);
    assert!(offset_of!(File, device) == 0);
    assert!(offset_of!(File, inode) == 8);
    assert!(offset_of!(File, size) == 16);
    assert!(offset_of!(File, mtime) == 24);
    assert!(offset_of!(File, mtime_ns) == 32);
    assert!(offset_of!(File, page) == 40);
    assert!(offset_of!(File, len) == 48);
    assert!(offset_of!(File, header_at) == 56);
    assert!(offset_of!(File, header_len) == 64);
    assert!(offset_of!(File, extents_at) == 72);
    assert!(offset_of!(File, extents) == 80);
    assert!(offset_of!(File, runs_at) == 88);
    assert!(offset_of!(File, runs) == 96);
    assert!(offset_of!(File, path_at) == 104);

    assert!(size_of::<Extent>() == 32 && align_of::<Extent>() == 8);
    assert!(offset_of!(Extent, at) == 0);
    assert!(offset_of!(Extent, len) == 8);
    assert!(offset_of!(Extent, kind) == 16);
    assert!(offset_of!(Extent, from) == 24);

    assert!(size_of::<Run>() == 24 && align_of::<Run>() == 8);
    assert!(offset_of!(Run, at) == 0);
    assert!(offset_of!(Run, from) == 8);
    assert!(offset_of!(Run, len) == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_header_file() {
        let header = include_str!("../c/preload.h");
        let magic = str::from_utf8(MAGIC).unwrap();
        for line in [
            format!("#define PLAN_MAGIC \"{magic}\""),
            format!("enum {{ PLAN_REPORT = {REPORT} }};"),
            format!(
                "enum {{ FROM_HEADER = {FROM_HEADER}, FROM_FILE = {FROM_FILE}, \
                 FROM_ZEROS = {FROM_ZEROS} }};"
            ),
        ] {
            assert!(header.lines().any(|there| there == line), "{line}");
        }
    }

    #[test]
    fn each_field_is_at_its_place() {
        let run = Run {
            at: 1,
            from: 2,
            len: 3,
        };
        let words = [1u64, 2, 3].map(u64::to_ne_bytes);
        assert_eq!(run.to_bytes(), words.as_flattened());
    }
}
