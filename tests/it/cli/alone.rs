//! Options that say more of another: alone they would do nothing, so they are refused.

use crate::support::Folder;

#[test]
fn what_says_more_of_an_option_needs_it() {
    let folder = Folder::new();
    let (model, out) = (folder.file("m.gguf"), folder.file("o.gguf"));
    let text = folder.write("t.txt", "Once upon a time. ");
    let text = text.to_str().unwrap();
    let fit = ["--fit", "84M", "--calibrate", text];
    let quantize = ["--quantize", "q4_0", "--calibrate", text];
    let repair = ["--quantize", "q4_0", "--repair", text];
    for (what, more, says) in [
        (&quantize[..], &["--ram", "512M"][..], "--ram needs --fit"),
        (&quantize, &["--types", "q4_0"], "--types needs --fit"),
        (&quantize, &["--time", "10m"], "--time needs --fit"),
        (&quantize, &["--match", "v"], "--match needs --ratio"),
        (&repair, &["--units", "drop"], "--units needs --ratio"),
        (
            &repair,
            &["--save-stats", "s"],
            "--save-stats needs --ratio",
        ),
        (
            &fit,
            &["--tensor-type", "a=q6_K"],
            "--tensor-type needs --quantize",
        ),
        (&fit, &["--pure"], "--pure needs --quantize"),
        (&fit, &["--units", "drop"], "--units needs --ratio"),
        (&["--lossless"], &["--pure"], "--pure needs --quantize"),
        (
            &["--lossless"],
            &["--choose", "match"],
            "--choose needs --ratio",
        ),
        (
            &["--lossless"],
            &["--baseline", "magnitude"],
            "--baseline needs --ratio",
        ),
        (
            &["--ratio", "0.3"],
            &["--types", "q4_0"],
            "--types needs --fit",
        ),
        (
            &["--ratio", "0.3"],
            &["--units", "drop"],
            "--units needs --repair",
        ),
    ] {
        let args = [what, more].concat();
        let ran = run!["convert", model, "-o", out; args].exits(2);
        // clap says it of what it sees itself.
        let told = ran.stderr.contains(says) || ran.stderr.contains("required arguments");
        assert!(told, "{says}: {ran:#?}");
    }
    for (args, says) in [
        (
            &["plan", "--ratio", "0.1", "--types", "q4_0"][..],
            "--types needs --fit",
        ),
        (
            &["plan", "--ratio", "0.1", "--calibrate", text],
            "--calibrate needs --fit",
        ),
    ] {
        let ran = run![args[0], model; args[1..]].exits(2);
        assert!(
            ran.stderr.contains(says) || ran.stderr.contains("--fit"),
            "{says}: {ran:#?}"
        );
    }
    for system in ["--system", "--chat-template"] {
        let ran = run!["run", model, "-p", "Hi", "--json", system, "x"].exits(2);
        assert!(ran.stderr.contains(system), "{ran:#?}");
    }
}
