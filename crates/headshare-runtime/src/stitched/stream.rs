//! A `FILE*` over a file that need not exist: how llama.cpp reads a logical
//! file's header, and a whole model that is made while it is read.

use std::any::Any;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use libc::{FILE, off64_t, size_t, ssize_t};

use super::virtual_file::VirtualFile;

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

struct Cookie<'a> {
    file: &'a dyn VirtualFile,
    position: u64,
    /// Why a read failed, or panicked.
    failed: Option<Failure>,
}

/// Why a read failed.
enum Failure {
    Error(io::Error),
    Panic(Box<dyn Any + Send>),
}

/// A read-only stream; closed when dropped.
pub(super) struct Stream<'a> {
    file: NonNull<FILE>,
    // Freed after the stream that points to it is closed: see `drop`.
    cookie: *mut Cookie<'a>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(virtual_file: &'a dyn VirtualFile) -> io::Result<Self> {
        let cookie = Box::into_raw(Box::new(Cookie {
            file: virtual_file,
            position: 0,
            failed: None,
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
            Some(file) => Ok(Self { file, cookie }),
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

    /// Why a read failed, if one did; goes on with its panic.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        // SAFETY: the cookie lives until `drop`, and no read runs: those that use
        // the pointer borrow the stream.
        match unsafe { &mut *self.cookie }.failed.take()? {
            Failure::Error(error) => Some(error),
            Failure::Panic(panic) => resume_unwind(panic),
        }
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
    let cookie = unsafe { &mut *cookie.cast::<Cookie<'_>>() };
    let left = cookie.file.size().saturating_sub(cookie.position);
    let n = (len as u64).min(left) as usize;
    // SAFETY: `out` has room for `len` bytes, which are set here first.
    let out = unsafe {
        std::ptr::write_bytes(out, 0, n);
        std::slice::from_raw_parts_mut(out.cast::<u8>(), n)
    };
    let (file, position) = (cookie.file, cookie.position);
    // No panic may go on into C.
    let failed = match catch_unwind(AssertUnwindSafe(|| file.read_at(position, out))) {
        Ok(Ok(())) => {
            cookie.position += n as u64;
            return n as ssize_t;
        }
        Ok(Err(error)) => Failure::Error(error),
        Err(panic) => Failure::Panic(panic),
    };
    cookie.failed = Some(failed);
    -1
}

/// # Safety
/// As [`read`]; `offset` points to a number.
unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    // SAFETY: as in `read`; the offset is the C library's own variable.
    let (cookie, offset) = unsafe { (&mut *cookie.cast::<Cookie<'_>>(), &mut *offset) };
    let base = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => cookie.position,
        libc::SEEK_END => cookie.file.size(),
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
        let file = &bytes[..];
        let stream = Stream::new(&file).unwrap();
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

    #[test]
    fn what_cannot_be_read_is_said_and_a_panic_goes_on() {
        struct Broken(bool);
        impl VirtualFile for Broken {
            fn size(&self) -> u64 {
                100
            }
            fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                assert!(!self.0, "broken");
                Err(io::Error::other("no such weights"))
            }
        }
        let mut buf = [0u8; 10];
        for panics in [false, true] {
            let file = Broken(panics);
            let mut stream = Stream::new(&file).unwrap();
            assert!(stream.failure().is_none());
            // SAFETY: the stream is open, the buffer as long as stated.
            let got = unsafe { libc::fread(buf.as_mut_ptr().cast(), 1, 10, stream.as_ptr()) };
            assert_eq!(got, 0);
            let failure = catch_unwind(AssertUnwindSafe(|| stream.failure()));
            match panics {
                true => assert!(failure.is_err()),
                false => assert_eq!(failure.unwrap().unwrap().to_string(), "no such weights"),
            }
        }
    }
}
