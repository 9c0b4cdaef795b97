//! A `FILE*` over bytes in memory: how llama.cpp reads the logical file's
//! header.

use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::NonNull;

use libc::{FILE, off64_t, size_t, ssize_t};

/// glibc's and musl's table of functions behind a custom stream.
#[repr(C)]
struct CookieFunctions {
    read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t>,
    write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t>,
    seek: Option<unsafe extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

// As `shim/guard.cpp` asserts of the C library's.
const _: () = {
    assert!(size_of::<CookieFunctions>() == 32 && align_of::<CookieFunctions>() == 8);
    assert!(offset_of!(CookieFunctions, read) == 0);
    assert!(offset_of!(CookieFunctions, write) == 8);
    assert!(offset_of!(CookieFunctions, seek) == 16);
    assert!(offset_of!(CookieFunctions, close) == 24);
};

unsafe extern "C" {
    fn fopencookie(
        cookie: *mut c_void,
        mode: *const c_char,
        functions: CookieFunctions,
    ) -> *mut FILE;
}

struct Cookie {
    bytes: *const u8,
    len: u64,
    position: u64,
}

/// A read-only stream; closed when dropped.
pub(super) struct Stream<'a> {
    file: NonNull<FILE>,
    // Freed after the stream that points to it is closed: see `drop`.
    cookie: *mut Cookie,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> io::Result<Self> {
        let cookie = Box::into_raw(Box::new(Cookie {
            bytes: bytes.as_ptr(),
            len: bytes.len() as u64,
            position: 0,
        }));
        let functions = CookieFunctions {
            read: Some(read),
            write: None,
            seek: Some(seek),
            close: None,
        };
        // SAFETY: the cookie lives until `drop`, after the stream; the functions
        // have the types that the C library wants.
        let file = unsafe { fopencookie(cookie.cast(), c"rb".as_ptr(), functions) };
        match NonNull::new(file) {
            Some(file) => Ok(Self {
                file,
                cookie,
                bytes: PhantomData,
            }),
            None => {
                let error = io::Error::last_os_error();
                // SAFETY: from `Box::into_raw` above, and nobody has it.
                drop(unsafe { Box::from_raw(cookie) });
                Err(error)
            }
        }
    }

    pub(super) fn as_ptr(&self) -> *mut FILE {
        self.file.as_ptr()
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { libc::fclose(self.file.as_ptr()) };
        // SAFETY: from `Box::into_raw`; the stream that used it is gone.
        drop(unsafe { Box::from_raw(self.cookie) });
    }
}

/// # Safety
/// `cookie` points to a [`Cookie`] that nothing else uses meanwhile, `out` to room
/// for `len` bytes.
unsafe extern "C" fn read(cookie: *mut c_void, out: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: the cookie given to `fopencookie`; the C library serialises the
    // calls for one stream.
    let cookie = unsafe { &mut *cookie.cast::<Cookie>() };
    let n = (len as u64).min(cookie.len.saturating_sub(cookie.position));
    // SAFETY: `n` bytes at `position` lie within the borrowed bytes, `out` has
    // room for `len`.
    unsafe {
        std::ptr::copy_nonoverlapping(
            cookie.bytes.add(cookie.position as usize),
            out.cast::<u8>(),
            n as usize,
        );
    }
    cookie.position += n;
    n as ssize_t
}

/// # Safety
/// As [`read`]; `offset` points to a number.
unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    // SAFETY: as in `read`; the offset is the C library's own variable.
    let (cookie, offset) = unsafe { (&mut *cookie.cast::<Cookie>(), &mut *offset) };
    let base = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => cookie.position,
        libc::SEEK_END => cookie.len,
        _ => return -1,
    };
    match base
        .checked_add_signed(*offset)
        .map(|to| (to, i64::try_from(to)))
    {
        Some((to, Ok(position))) => {
            cookie.position = to;
            *offset = position;
            0
        }
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_seeks_like_a_file() {
        let bytes: Vec<u8> = (0..200u8).cycle().take(100_000).collect();
        let stream = Stream::new(&bytes).unwrap();
        let mut buf = [0u8; 100];
        // SAFETY: the stream is open, the buffer as long as stated.
        unsafe {
            assert_eq!(libc::fseek(stream.as_ptr(), 0, libc::SEEK_END), 0);
            assert_eq!(libc::ftell(stream.as_ptr()), 100_000);
            assert_eq!(libc::fseek(stream.as_ptr(), 54_321, libc::SEEK_SET), 0);
            assert_eq!(
                libc::fread(buf.as_mut_ptr().cast(), 1, 100, stream.as_ptr()),
                100
            );
            assert_eq!(libc::fseek(stream.as_ptr(), -10, libc::SEEK_SET), -1);
        }
        assert_eq!(buf, bytes[54_321..54_421]);
        // SAFETY: as above; only 50 bytes are left.
        unsafe {
            assert_eq!(libc::fseek(stream.as_ptr(), -50, libc::SEEK_END), 0);
            assert_eq!(
                libc::fread(buf.as_mut_ptr().cast(), 1, 100, stream.as_ptr()),
                50
            );
        }
        assert_eq!(buf[..50], bytes[99_950..]);
    }
}
