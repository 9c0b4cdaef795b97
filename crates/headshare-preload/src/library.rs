//! The preload library itself, which `build.rs` has compiled.

/// The shared object; `None` where it cannot work (not 64-bit Linux with glibc).
pub const LIBRARY: Option<&[u8]> = library();

#[cfg(preload)]
const fn library() -> Option<&'static [u8]> {
    Some(include_bytes!(concat!(env!("OUT_DIR"), "/preload.so")))
}

#[cfg(not(preload))]
const fn library() -> Option<&'static [u8]> {
    None
}
