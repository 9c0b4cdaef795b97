//! Busy neighbours: threads that compute all the time, so that a measurement
//! shows what other programs do to it.
//!
//! They belong to this process and the model runs in a worker's, which so cannot
//! tell them from another program; and they end with this process, however it
//! ends.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use headshare_runtime::threads;

/// Neighbours that are busy until this is dropped.
#[derive(Debug)]
pub struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Starts `n` of them.
    ///
    /// # Errors
    /// When there cannot be as many threads.
    pub fn start(n: u32) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let compute = |stop: Arc<AtomicBool>| {
            let mut x = 1u64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..1 << 12 {
                    x = black_box(x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
                }
            }
        };
        let mut this = Self {
            threads: Vec::new(),
            stop,
        };
        for _ in 0..n {
            let stop = Arc::clone(&this.stop);
            let thread = threads::spawn(move || compute(stop))?;
            this.threads.push(thread);
        }
        Ok(this)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use headshare_runtime::threads::processor_time;

    #[test]
    fn neighbours_take_processor_time_until_they_are_dropped() {
        let before = processor_time().unwrap();
        let busy = Busy::start(2).unwrap();
        while processor_time().unwrap() - before < std::time::Duration::from_millis(50) {
            std::thread::yield_now();
        }
        let stop = Arc::downgrade(&busy.stop);
        drop(busy);
        // Each thread held the flag.
        assert!(stop.upgrade().is_none());
    }
}
