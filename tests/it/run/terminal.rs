//! A program in a pseudo-terminal: keys in, screen out.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{PATIENCE, wait_until};

pub const CTRL_C: &str = "\u{3}";
pub const CTRL_D: &str = "\u{4}";

/// What a line editor sends when it begins to read, and when it has a line: it
/// has pasted text marked in between.
const READING: &str = "\u{1b}[?2004h";
const READ: &str = "\u{1b}[?2004l";

pub struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Screen>,
    /// Bytes of the screen that tests have looked at.
    seen: usize,
}

#[derive(Default)]
struct Screen {
    text: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Terminal {
    /// Starts a program with a terminal of its own, as its leader.
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let end: OwnedFd = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "xterm")
            .stdin(end.try_clone().unwrap())
            .stdout(end.try_clone().unwrap())
            .stderr(end)
            .spawn()
            .expect("setsid (util-linux) runs");
        let keys = File::from(master);
        let screen = Arc::new(Screen::default());
        let (mut from, to) = (keys.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                // The last program that has the terminal open ends it, as an
                // error.
                let len = from.read(&mut piece).unwrap_or(0);
                let mut text = to.text.lock().unwrap();
                text.0.extend(&piece[..len]);
                text.1 = len == 0;
                to.changed.notify_all();
                if len == 0 {
                    return;
                }
            }
        });
        Self {
            child,
            keys,
            screen,
            seen: 0,
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until `text` comes; returns what came before it.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut screen = self.screen.text.lock().unwrap();
        loop {
            let unseen = &screen.0[self.seen..];
            let found = unseen
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let before = String::from_utf8_lossy(&unseen[..at]).into_owned();
                self.seen += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !screen.1 && !left.is_zero(),
                "no {text:?} on the screen:\n{}",
                String::from_utf8_lossy(&screen.0)
            );
            screen = self.screen.changed.wait_timeout(screen, left).unwrap().0;
        }
    }

    /// Waits until a line can be typed; returns what came before.
    #[track_caller]
    pub fn wait_for_prompt(&mut self) -> String {
        self.wait_for(READING)
    }

    /// Types a line and waits until the program has it.
    #[track_caller]
    pub fn enter(&mut self, line: &str) {
        self.press(line);
        self.press("\r");
        self.wait_for(READ);
    }

    /// Types a message and waits for the whole answer.
    #[track_caller]
    pub fn ask(&mut self, message: &str) -> String {
        self.enter(message);
        let answer = self.wait_for_prompt();
        answer.replace('\r', "").trim().to_owned()
    }

    /// Waits until the program ends.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut screen = self.screen.text.lock().unwrap();
        while !screen.1 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the terminal stays open");
            screen = self.screen.changed.wait_timeout(screen, left).unwrap().0;
        }
        Ended {
            code: status.unwrap().code(),
            rest: String::from_utf8_lossy(&screen.0[self.seen..]).into_owned(),
            cooked: is_cooked(&self.keys),
        }
    }

    /// Whether the terminal echoes and edits lines itself.
    pub fn is_cooked(&self) -> bool {
        is_cooked(&self.keys)
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// What it still said.
    pub rest: String,
    /// Whether the terminal echoes and edits lines itself, as shells want it.
    pub cooked: bool,
}

fn is_cooked(terminal: &File) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
