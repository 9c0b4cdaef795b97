//! How much memory this process may use: what the machine has, or less where
//! its control group (a container's, for example) or its own limits allow less.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Bytes that this process may use, of `physical` that there are.
pub(super) fn usable(physical: Option<u64>) -> Option<u64> {
    let own = [Resource::As, Resource::Data].map(|resource| getrlimit(resource).current);
    let group = of_control_groups(Path::new("/"));
    own.into_iter().chain([group, physical]).flatten().min()
}

/// The least that a control group above this process may use; none where no
/// group is limited. `root` is where the system's files are.
fn of_control_groups(root: &Path) -> Option<u64> {
    let own = std::fs::read(root.join("proc/self/cgroup")).ok()?;
    let mounts = std::fs::read(root.join("proc/self/mountinfo")).ok()?;
    let mounts: Vec<Mount> = lines(&mounts).filter_map(Mount::parse).collect();
    lines(&own)
        .filter_map(Membership::parse)
        .filter_map(|member| member.limit(root, &mounts))
        .min()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n')
}

/// The versions of control groups, which a machine can have side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// The files that bound a group's memory. Beyond the second of v2 it is
    /// slowed down until it would not get on.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["memory.limit_in_bytes"],
            Self::V2 => &["memory.max", "memory.high"],
        }
    }
}

/// A group that this process is in.
struct Membership<'a> {
    version: Version,
    path: &'a Path,
}

impl<'a> Membership<'a> {
    /// Of a line of /proc/self/cgroup: `hierarchy:controllers:path`.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(3, |&b| b == b':');
        let (hierarchy, controllers) = (fields.next()?, fields.next()?);
        let path = Path::new(OsStr::from_bytes(fields.next()?));
        let version = match hierarchy {
            b"0" => Version::V2,
            _ => Version::V1,
        };
        let mut controllers = controllers.split(|&b| b == b',');
        let counts = version == Version::V2 || controllers.any(|name| name == b"memory");
        counts.then_some(Self { version, path })
    }

    /// The least limit of the group and of those around it.
    fn limit(&self, root: &Path, mounts: &[Mount]) -> Option<u64> {
        let mount = mounts.iter().rfind(|mount| mount.version == self.version)?;
        let top = root.join(mount.point.strip_prefix("/").ok()?);
        // In a container, the path may be the machine's, and the mount no more
        // than the container's own group.
        let below = self.path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let plain = |part: Component| matches!(part, Component::Normal(_));
        let below = match below.components().all(plain) {
            true => below,
            false => Path::new(""),
        };
        let limits = below.ancestors().flat_map(|group| {
            let files = self.version.files().iter();
            let folder = top.join(group);
            files.filter_map(move |file| read_limit(&folder.join(file)))
        });
        limits.min()
    }
}

/// `max` is no number and no limit; v1 has a very large number instead.
fn read_limit(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A mounted hierarchy of control groups.
struct Mount {
    version: Version,
    /// The group that is at the mount point.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Of a line of /proc/self/mountinfo: ids, the root in the file system, the
    /// mount point, options; after a `-` its type, source and own options.
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let end = fields.iter().position(|field| *field == b"-")?;
        let version = match *fields.get(end + 1)? {
            b"cgroup2" => Version::V2,
            b"cgroup" => {
                let mut options = fields.get(end + 3)?.split(|&b| b == b',');
                options.find(|option| *option == b"memory")?;
                Version::V1
            }
            _ => return None,
        };
        let path = |field: &[u8]| PathBuf::from(OsStr::from_bytes(&unescaped(field)));
        Some(Self {
            version,
            root: path(fields.get(3)?),
            point: path(fields.get(4)?),
        })
    }
}

/// `field` with the kernel's escapes (`\\040` for a space) carried out.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        of_control_groups(folder.path())
    }

    const V2: &str = "22 1 0:5 / /proc rw - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let group = |own: &str, above: &str| {
            limit(&[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("proc/self/mountinfo", V2),
                ("sys/fs/cgroup/a/b/memory.max", own),
                ("sys/fs/cgroup/a/memory.max", above),
            ])
        };
        assert_eq!(group("500\n", "max\n"), Some(500));
        assert_eq!(group("max\n", "700\n"), Some(700));
        assert_eq!(group("500\n", "400\n"), Some(400));
        assert_eq!(group("max\n", "max\n"), None);
    }

    #[test]
    fn the_bound_that_slows_down_counts() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "900\n"),
            ("sys/fs/cgroup/memory.high", "800\n"),
        ];
        assert_eq!(limit(&files), Some(800));
    }

    #[test]
    fn version_1_has_its_own_file_and_controllers() {
        let files = [
            (
                "proc/self/cgroup",
                "5:cpu:/x\n4:memory:/docker/0e9e\n1:name=systemd:/\n",
            ),
            ("proc/self/mountinfo", V1),
            (
                "sys/fs/cgroup/memory/docker/0e9e/memory.limit_in_bytes",
                "600\n",
            ),
            ("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "650\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpu/x/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(limit(&files), Some(600));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let seen = |own: &str, root: &str| {
            limit(&[
                ("proc/self/cgroup", own),
                (
                    "proc/self/mountinfo",
                    &format!("30 23 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ),
                ("sys/fs/cgroup/memory.max", "300\n"),
            ])
        };
        // With a namespace of its own, with the machine's paths, and from a group
        // beside it.
        assert_eq!(seen("0::/\n", "/"), Some(300));
        assert_eq!(seen("0::/docker/1\n", "/docker/1"), Some(300));
        assert_eq!(seen("0::/docker/1\n", "/"), Some(300));
        assert_eq!(seen("0::/../other\n", "/"), Some(300));
    }

    #[test]
    fn odd_mounts_are_read_or_passed_over() {
        let files = [
            ("proc/self/cgroup", "0::/a:b\nnonsense\n"),
            (
                "proc/self/mountinfo",
                "nonsense\n30 23 0:26 / /odd\\040place rw - cgroup2 none rw\n",
            ),
            ("odd place/a:b/memory.max", "200\n"),
        ];
        assert_eq!(limit(&files), Some(200));
        assert_eq!(limit(&[("proc/self/cgroup", "0::/\n")]), None);
        assert_eq!(limit(&[]), None);
    }

    #[test]
    fn there_is_never_more_than_the_machine_has() {
        assert!(usable(Some(1 << 30)).unwrap() <= 1 << 30);
    }
}
