//! What a file is that is no GGUF. All kinds of files are taken for models, and
//! who is told what it is knows what to do next.

use crate::{ErrorKind, FormatError, Rule};

/// What makes a GGUF of a model as it is published.
const FROM_ORIGINAL: &str =
    "llama.cpp's convert_hf_to_gguf.py makes a GGUF of the folder that the model was published as";

/// The error about `file`, the beginning of a file of `len` bytes that does not
/// begin as a GGUF.
pub(super) fn refused(file: &[u8], len: u64) -> FormatError {
    let kinds = [git_lfs, old_ggml, safetensors, python, compressed, web_page];
    match kinds.into_iter().find_map(|kind| kind(file, len)) {
        Some((problem, hint)) => FormatError::unsupported("file", problem).hint(hint),
        None => FormatError::new(
            ErrorKind::Malformed(Rule::Magic),
            "magic",
            format!(
                "starts with {:?}, not \"GGUF\": this is no GGUF file",
                String::from_utf8_lossy(&file[..file.len().min(4)])
            ),
        ),
    }
}

/// What the file is, and what to do.
type Known = Option<(String, String)>;

/// What stands in a Git repository for a large file: a short text.
fn git_lfs(file: &[u8], len: u64) -> Known {
    const LONGEST: u64 = 1024;
    if len > LONGEST || !file.starts_with(b"version https://") {
        return None;
    }
    let text = std::str::from_utf8(file).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    field("oid ")?;
    let size = field("size ").and_then(|size| size.trim().parse::<u64>().ok());
    let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
    Some((
        format!("is a Git LFS pointer: the file{size} that it stands for was not fetched"),
        "git lfs pull, in the repository that it comes from, fetches the file".to_owned(),
    ))
}

/// llama.cpp's formats from before GGUF, and its other files of that time: their
/// magic is a number, written in the order of the machine's bytes.
fn old_ggml(file: &[u8], _: u64) -> Known {
    let magic: [u8; 4] = file.get(..4)?.try_into().ok()?;
    let mut name = magic;
    if !name.starts_with(b"gg") {
        name.reverse();
    }
    let name = std::str::from_utf8(&name).ok()?;
    let kind = match name {
        "ggml" | "ggmf" | "ggjt" => "model file",
        "ggla" => "LoRA adapter",
        "ggsn" | "ggsq" => {
            return Some((
                format!("is a saved state of llama.cpp ({name}), not a model"),
                "name the model that the state is of".to_owned(),
            ));
        }
        _ => return None,
    };
    let hint = match name {
        "ggla" => "llama.cpp's convert_lora_to_gguf.py converts the adapter as it was published",
        _ => {
            "get the model as GGUF, or make one: llama.cpp's convert_llama_ggml_to_gguf.py reads \
             such files of LLaMA models, convert_hf_to_gguf.py what others were published as"
        }
    };
    Some((
        format!("is an old ggml {kind} ({name}), from before GGUF; no program of today reads it"),
        hint.to_owned(),
    ))
}

/// A length, and as much JSON.
fn safetensors(file: &[u8], len: u64) -> Known {
    let (length, json) = file.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    let fits = length >= 2 && length.checked_add(8).is_some_and(|end| end <= len);
    let begins =
        |next: &[u8]| json.first() == Some(&b'{') && json.get(1).is_some_and(|b| next.contains(b));
    (fits && begins(b"\"} \n\r\t")).then(|| {
        (
            "is a safetensors file, not a GGUF".to_owned(),
            FROM_ORIGINAL.to_owned(),
        )
    })
}

/// PyTorch's files: pickles, alone or in a zip archive.
fn python(file: &[u8], _: u64) -> Known {
    let what = if file.starts_with(b"PK\x03\x04") {
        "is a zip archive, as PyTorch's .bin and .pt files are"
    } else if matches!(file, [0x80, 2..=5, ..]) {
        "is a Python pickle, as PyTorch's older files are"
    } else {
        return None;
    };
    Some((format!("{what}, not a GGUF"), FROM_ORIGINAL.to_owned()))
}

fn compressed(file: &[u8], _: u64) -> Known {
    let formats: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
    ];
    let (_, name) = formats
        .into_iter()
        .find(|(magic, _)| file.starts_with(magic))?;
    Some((
        format!("is compressed ({name})"),
        "unpack it first".to_owned(),
    ))
}

/// What a browser shows instead of downloading.
fn web_page(file: &[u8], _: u64) -> Known {
    let start = file.get(..256).unwrap_or(file).trim_ascii_start();
    let begins = |tag: &[u8]| {
        start
            .get(..tag.len())
            .is_some_and(|s| s.eq_ignore_ascii_case(tag))
    };
    (begins(b"<!doctype html") || begins(b"<html")).then(|| {
        (
            "is a web page: the page about the file was downloaded, not the file".to_owned(),
            "use the link that downloads the file (/resolve/ in place of /blob/ on Hugging Face)"
                .to_owned(),
        )
    })
}
