//! A model file that need not exist.

use std::io;

/// A file that can be read like one, from several threads, and need not exist.
pub trait VirtualFile: Sync {
    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Fills `out` with the bytes from `at` on, all of which lie within the file.
    ///
    /// # Errors
    /// When they cannot be made.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
}

/// Bytes in memory.
impl VirtualFile for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..)?.get(..out.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}
