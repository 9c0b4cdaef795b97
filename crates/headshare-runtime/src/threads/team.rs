//! The threads that OpenMP evaluates with. It starts them when it needs them,
//! and ends the process where it cannot; so they are started before that.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{self, ThreadId};

/// Which threads are there for a context.
#[derive(Debug, Default)]
pub(crate) struct Team {
    /// The thread that evaluates, which OpenMP keeps the others for, and how many
    /// they are with it.
    started: Option<(ThreadId, u32)>,
}

impl Team {
    /// Sees to it that there are `n` threads for what this thread evaluates.
    pub(crate) fn start(&mut self, n: u32) -> io::Result<()> {
        let me = thread::current().id();
        if self
            .started
            .is_some_and(|(of, there)| of == me && there >= n)
        {
            return Ok(());
        }
        // One more than OpenMP starts: it has other needs for memory, too.
        try_to_start(n)?;
        openmp::start(n);
        self.started = Some((me, n));
        Ok(())
    }
}

/// Starts `n` threads with as much stack as OpenMP's would have, side by side,
/// and ends them again.
fn try_to_start(n: u32) -> io::Result<()> {
    // They live until the sender is gone.
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    thread::scope(|scope| {
        let start = |_| {
            thread::Builder::new()
                .stack_size(default_stack())
                .spawn_scoped(scope, || {
                    let _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv();
                })
        };
        let started: io::Result<Vec<_>> = (0..n).map(start).collect();
        drop(hold);
        // The scope waits for what threads do; their stacks are free again when
        // they are joined.
        for thread in started? {
            let _ = thread.join();
        }
        Ok(())
    })
}

/// Bytes of stack that the system gives a thread where nothing is asked for.
fn default_stack() -> usize {
    const USUAL: usize = 8 << 20;
    #[cfg(target_os = "linux")]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Stack).current;
    #[cfg(not(target_os = "linux"))]
    let limit = None::<u64>;
    limit
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(USUAL)
}

#[cfg(target_os = "linux")]
mod openmp {
    use std::ffi::{c_uint, c_void};
    use std::ptr;

    /// What compilers call for a parallel region, of GCC's OpenMP and of LLVM's.
    type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

    extern "C" fn nothing(_: *mut c_void) {}

    /// Has `n` threads do nothing together; OpenMP keeps them for the next time.
    /// Where llama.cpp was built without it, there is nothing to do.
    pub(super) fn start(n: u32) {
        // SAFETY: the name ends with NUL; the answer is a function of that name
        // or NULL.
        let parallel = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
        if parallel.is_null() {
            return;
        }
        // SAFETY: this function has had this form since GCC 4.9; it calls
        // `nothing`, which takes any pointer, in each thread, and returns when
        // all have.
        unsafe {
            let parallel: Parallel = std::mem::transmute(parallel);
            parallel(nothing, ptr::null_mut(), n, 0);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod openmp {
    pub(super) fn start(_: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_is_started_once_for_a_thread_and_again_where_it_grows() {
        let mut team = Team::default();
        team.start(2).unwrap();
        let first = team.started;
        team.start(1).unwrap();
        assert_eq!(team.started, first);
        team.start(3).unwrap();
        assert_eq!(team.started.unwrap().1, 3);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                team.start(2).unwrap();
                team.started.unwrap()
            });
            let (of, n) = other.join().unwrap();
            assert_eq!(n, 2);
            assert_ne!(of, thread::current().id());
        });
    }
}
