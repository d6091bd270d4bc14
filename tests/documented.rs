//! The commands of the documentation do what it says. Those of the program
//! itself run here as they stand, at the documented paths and in their order, in
//! mount and process namespaces of their own; their output is compared with what
//! is printed below them. Every other command is in `ELSEWHERE`, with the suite
//! that runs it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::entry::{dir, file, whiteout};
use support::oci_layout::OciLayout;
use support::tarball::{Compression, tars};

/// Commands that another suite runs: as documented, or with `…` for all that begin
/// so; a file of that suite; a text in it.
const ELSEWHERE: &str = r#"
kind create cluster --config e2e/kind/cluster.yaml | e2e/kind/run.sh | "${KIND_CONFIG:=e2e/kind/cluster.yaml}"
kind load image-archive … | e2e/kind/cluster.sh | load image-archive "$archive"
kubectl get nodes -L aufs-csi.dev/aufs,aufs-csi.dev/overlay | e2e/kind/run.sh | kubectl get nodes -L aufs-csi.dev/aufs,aufs-csi.dev/overlay
kubectl -n aufs-csi rollout status daemonset/aufs-csi-node | e2e/kind/run.sh | kubectl -n aufs-csi rollout status daemonset/aufs-csi-node
helm test aufs-csi --namespace aufs-csi | e2e/kind/run.sh | "$helm" test aufs-csi --namespace aufs-csi
helm uninstall aufs-csi … | e2e/kind/run.sh | "$helm" uninstall aufs-csi --namespace aufs-csi --cascade foreground --wait
kubectl describe pod… | e2e/node/registry.sh | kubectl describe pod
kubectl wait --for=condition=Ready pod/layers … | e2e/kind/run.sh | kubectl wait --for=condition=Ready pod/layers --timeout=2m
kubectl exec layers -c reader -- cat … | e2e/kind/run.sh | kubectl exec layers -c reader -- cat
kubectl logs --previous | e2e/node/chart.sh | logs --previous
kubectl -n aufs-csi logs ds/aufs-csi-node | e2e/node/chart.sh | logs "daemonset/$RELEASE-node"
kubectl -n aufs-csi exec ds/aufs-csi-node -- /aufs-csi volumes | e2e/node/chart.sh | exec "ds/$RELEASE-node" -- /aufs-csi volumes
kubectl -n aufs-csi exec ds/aufs-csi-node -- /aufs-csi gc --dry-run | e2e/node/chart.sh | exec "ds/$RELEASE-node" -- /aufs-csi gc --dry-run
helm show values charts/aufs-csi | e2e/api/run.sh | documented 'helm show values'
helm upgrade --install aufs-csi … | e2e/api/run.sh | documented 'helm upgrade --install aufs-csi'
helm upgrade aufs-csi … | e2e/api/run.sh | documented 'helm upgrade aufs-csi'
kubectl label namespace … | e2e/api/run.sh | documented 'kubectl label namespace'
kubectl label node … | e2e/api/run.sh | documented 'kubectl label node'
kubectl apply -f manifests/examples/pod.yaml | e2e/api/run.sh | documented 'kubectl apply -f manifests/examples/pod.yaml'
kubectl apply -f manifests/admission | e2e/api/run.sh | documented 'kubectl apply -f manifests/admission'
kubectl apply -k manifests/… | e2e/api/run.sh | documented 'kubectl apply -k manifests/'
kubectl get pods -A -o go-template=… | e2e/api/run.sh | documented 'kubectl get pods -A -o go-template='
kubectl debug node/worker-1 … | e2e/kind/run.sh | kubectl debug "node/${nodes[1]}" --profile=sysadmin
kubectl -n aufs-csi describe daemonset | e2e/api/run.sh | documented 'kubectl -n aufs-csi describe daemonset'
aufs-csi stage registry.example/team/app:1 | tests/registry/site.rs | &[&["stage"], arguments]
aufs-csi node --policy FILE | tests/commands.rs | &["node", "--node-id", "a", "--policy", named]
grep . /sys/fs/aufs/si_<id>/br[0-9]* | tests/aufs/main.rs | read_dir("/sys/fs/aufs")
aufs-csi diff | README.md | # aufs-csi diff /mnt/app
make help | Makefile | help: ## Show the targets
make try | scripts/try.sh | examples/try
make test | Makefile | test: lint deny
make image | Makefile | scripts/test-image.sh "$$archive"
make bench | Makefile | scripts/bench.sh
make bench-aufs AUFS_KERNEL=path/to/bzImage | Makefile | e2e/aufs/run.sh bench
make e2e-aufs AUFS_KERNEL=path/to/bzImage | Makefile | AUFS_KERNEL='$(AUFS_KERNEL)' e2e/aufs/run.sh
make e2e-node… | Makefile | e2e/node/run.sh $(CASES)
make e2e-kind | Makefile | e2e/kind/run.sh "$$archive"
"#;

/// Command, file and text of each line.
fn elsewhere() -> impl Iterator<Item = [&'static str; 3]> {
    let lines = ELSEWHERE.lines().filter(|line| !line.is_empty());
    lines.map(|line| {
        let parts: Vec<&str> = line.split(" | ").collect();
        parts.try_into().unwrap()
    })
}

const PAGES: &[&str] = &["CONTRIBUTING.md", "README.md", "charts/aufs-csi/README.md"];

/// Programs whose commands in the running text count too.
const PROGRAMS: &[&str] = &["aufs-csi", "helm", "kind", "kubectl"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let mut pages: Vec<String> = docs.filter(|name| name.ends_with(".md")).collect();
    pages.extend(PAGES.iter().map(ToString::to_string));
    pages.sort();
    pages
}

/// A command of a page, and what the page prints below it.
#[derive(Debug)]
struct Documented {
    /// Page and line.
    place: String,
    line: String,
    output: Option<Vec<String>>,
    /// The last one of its block.
    last: bool,
}

impl Documented {
    /// Without a comment and with one space between words.
    fn command(&self) -> String {
        let line = self.line.split(" #").next().unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// All commands of a page, in their order: of `console` and `sh` blocks, and
/// those in the running text.
fn commands(page: &str) -> Vec<Documented> {
    let text = read(page);
    let mut found: Vec<Documented> = Vec::new();
    let mut fence: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let one = |line: &str, output| Documented {
            place: format!("{page}:{}", number + 1),
            line: line.to_owned(),
            output,
            last: false,
        };
        if let Some(language) = line.strip_prefix("```") {
            if matches!(fence.as_deref(), Some("sh" | "console")) {
                found.last_mut().unwrap().last = true;
            }
            fence = fence.is_none().then(|| language.to_owned());
            continue;
        }
        match fence.as_deref() {
            Some("console") => match line.strip_prefix("# ") {
                Some(line) => found.push(one(line, Some(Vec::new()))),
                None => {
                    let output = found.last_mut().and_then(|last| last.output.as_mut());
                    output.expect("output without a command").push(line.into());
                }
            },
            Some("sh") if line.trim().is_empty() || line.starts_with('#') => {}
            Some("sh") => found.push(one(line, None)),
            Some(_) => {}
            None => {
                let spans = line.split('`').skip(1).step_by(2);
                let begins = |span: &&str| {
                    let is = |name| {
                        span.strip_prefix(name)
                            .is_some_and(|on| on.starts_with(' '))
                    };
                    PROGRAMS.iter().any(is)
                };
                found.extend(spans.filter(begins).map(|span| one(span, None)));
            }
        }
    }
    found
}

/// Where a command is run that another suite runs.
fn listed(command: &str) -> Option<[&'static str; 3]> {
    elsewhere().find(|[one, ..]| match one.strip_suffix('…') {
        Some(beginning) => command.starts_with(beginning),
        None => command == *one,
    })
}

/// Whether it is run here: the program's own, and what prepares or uses it.
fn runs_here(command: &str) -> bool {
    let first = command.split(' ').next().unwrap();
    listed(command).is_none() && ["aufs-csi", "echo", "mkdir", "unshare"].contains(&first)
}

#[test]
fn every_command_is_run_by_a_test() {
    let mut used = BTreeSet::new();
    for page in pages() {
        for one in commands(&page) {
            let command = one.command();
            let Some([entry, file, text]) = listed(&command) else {
                assert!(
                    runs_here(&command),
                    "{}: no test runs `{command}`: have one do so, and name it in tests/documented.rs",
                    one.place
                );
                continue;
            };
            assert!(
                read(file).contains(text),
                "{}: {file} is said to run `{command}`, but `{text}` is not in there",
                one.place
            );
            used.insert(entry);
        }
    }
    for [one, ..] in elsewhere() {
        assert!(used.contains(one), "no page has `{one}`");
    }
}

#[test]
fn targets_of_make_exist() {
    let makefile = read("Makefile");
    let mut files = pages();
    files.extend(["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"].map(String::from));
    let decisions = fs::read_dir(root().join("docs/adr")).unwrap();
    files.extend(decisions.map(|one| format!("docs/adr/{}", one.unwrap().file_name().display())));
    let mut count = 0;
    for page in files {
        let text = read(&page);
        let spans = text.lines().flat_map(|line| {
            let whole = line.starts_with("make ").then_some(line);
            whole.into_iter().chain(line.split('`').skip(1).step_by(2))
        });
        for span in spans.filter_map(|span| span.strip_prefix("make ")) {
            let target = span.split_whitespace().next().unwrap();
            let rule = format!("\n{target}:");
            assert!(
                makefile.contains(&rule),
                "{page}: there is no `make {target}`"
            );
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

/// What a page takes for granted, before a command that begins so.
const BEFORE: &[(&str, &str)] = &[
    // There is another image, which was used before the one that is mounted.
    (
        "aufs-csi gc --dry-run --all",
        "touch --date '1 minute' /var/lib/aufs-csi/images/*.json\n\
         aufs-csi stage oci:/srv/images/old:1 >/dev/null\n\
         export AUFS_CSI_GC_MIN_AGE=0s",
    ),
    (
        "aufs-csi node",
        "mkdir -p /var/lib/kubelet/plugins_registry /var/lib/kubelet/pods",
    ),
    (
        "aufs-csi purge",
        "mkdir -p /var/lib/kubelet/plugins/aufs-csi.dev",
    ),
];

/// What is true after a command that begins so: a command, and what it prints.
const AFTER: &[(&str, &str, &str)] = &[
    (
        "aufs-csi mount oci:/srv/images/app:1 /mnt/app",
        "cat /mnt/app/etc/version; ls -A /mnt/app/etc",
        "12\nhosts\nold\nversion\n",
    ),
    (
        "aufs-csi export",
        "tar --list --file changes.tar | grep -v /$ | sort",
        "etc/.wh.version\netc/note\n",
    ),
    ("aufs-csi unmount", "ls -A /mnt/app", ""),
    (
        "aufs-csi --rootless mount",
        "cat ~/app/etc/version; aufs-csi --rootless volumes | grep -c '/mnt/home/app$'",
        "12\n1\n",
    ),
    (
        "aufs-csi purge",
        "ls -d /var/lib/aufs-csi /run/aufs-csi /var/lib/kubelet/plugins/aufs-csi.dev 2>/dev/null",
        "",
    ),
];

/// The plugin until it listens for kubelet, and until it is told to end.
const PLUGIN: &str = r#"( exec COMMAND
) >node.log 2>&1 &
plugin=$!
for _ in $(seq 600); do
    [ -S /var/lib/kubelet/plugins_registry/aufs-csi.dev-reg.sock ] && break
    kill -0 "$plugin" || break
    sleep 0.1
done
[ -S /var/lib/kubelet/plugins_registry/aufs-csi.dev-reg.sock ] && kill -TERM "$plugin" && wait "$plugin"
"#;

/// Runs all commands of a page that run here. `dir` has the images, and is where
/// the commands run.
fn run(page: &str, dir: &Path) -> usize {
    let mut script = String::from(
        "set -e\n\
         mkdir images; mv app old images\n\
         : >program; mount --bind \"$PROGRAM\" program\n\
         for place in /srv /mnt /var/lib /run /usr/local/bin; do mount -t tmpfs tmpfs $place; done\n\
         mkdir -p /srv/images /mnt/home /run/user/0; mount --bind images /srv/images\n\
         : >/usr/local/bin/aufs-csi; mount --bind program /usr/local/bin/aufs-csi\n\
         set +e\n",
    );
    let all = commands(page);
    let mut expected = Vec::new();
    let mut nested = false;
    for one in &all {
        let command = one.command();
        if runs_here(&command) {
            for (_, before) in BEFORE.iter().filter(|(with, _)| command.starts_with(with)) {
                script += &format!("{before}\n");
            }
            let line = if command.starts_with("aufs-csi node") {
                PLUGIN.replace("COMMAND", &one.line)
            } else {
                one.line.clone()
            };
            script += &format!("{line}\necho \"\u{1}$?\u{2}\"\n");
            expected.push((one, None));
            // It begins a shell, which reads on here.
            nested |= command.starts_with("unshare");
            let after = AFTER.iter().filter(|(with, ..)| command.starts_with(with));
            for (_, look, shown) in after {
                script += &format!("{look}\necho \"\u{1}0\u{2}\"\n");
                expected.push((one, Some(*shown)));
            }
        }
        if one.last && std::mem::take(&mut nested) {
            script += "exit\n";
        }
    }
    if expected.is_empty() {
        return 0;
    }
    let (found, errors) = shell(&script, dir);
    let mut found = found.split('\u{2}');
    for (one, shown) in &expected {
        let (place, line) = (&one.place, &one.line);
        let part = found.next().unwrap_or_default();
        let (output, code) = part
            .rsplit_once('\u{1}')
            .unwrap_or_else(|| panic!("{place}: `{line}` did not end: {part}\n{errors}"));
        assert_eq!(code, "0", "{place}: `{line}`: {output}\n{errors}");
        let output = output.strip_prefix('\n').unwrap_or(output);
        match (shown, &one.output) {
            (Some(shown), _) => assert_eq!(output, *shown, "{place}: after `{line}`\n{errors}"),
            (None, Some(documented)) => {
                let mut found = shapes(output.lines());
                let mut documented = shapes(documented.iter().map(String::as_str));
                // Their order is that of the digests.
                if one.command() == "aufs-csi layers" {
                    found.sort();
                    documented.sort();
                }
                assert_eq!(found, documented, "{place}: `{line}` prints\n{output}");
            }
            (None, None) => {}
        }
    }
    expected.len()
}

/// What a script for bash prints, and its errors. It is given as a terminal
/// would give it, so that a shell that it starts reads the rest.
#[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
fn shell(script: &str, dir: &Path) -> (String, String) {
    let file = dir.join("errors");
    let mut child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "bash"])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("PROGRAM", env!("CARGO_BIN_EXE_aufs-csi"))
        .env("SHELL", "/bin/bash")
        .env("HOME", "/mnt/home")
        .env("XDG_RUNTIME_DIR", "/run/user/0")
        .env("NODE_NAME", "worker-1")
        // As on the node that the pages show.
        .env("AUFS_CSI_UNION", "overlay")
        // Others may listen there.
        .env("AUFS_CSI_HTTP_ADDRESS", "")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&file).unwrap())
        .spawn()
        .expect("unshare of util-linux is needed");
    let mut input = child.stdin.take().unwrap();
    let script = script.to_owned();
    // What reads no more is seen by what is missing.
    let writer = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut input, script.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let log = fs::read_to_string(dir.join("node.log")).unwrap_or_default();
    let errors = fs::read_to_string(file).unwrap() + &log;
    (String::from_utf8(output.stdout).unwrap(), errors)
}

/// Lines of output without what differs from node to node: their columns, in them
/// the words and the numbers of things, but neither digests nor sizes nor times. Of
/// what the kernel can do, only that it is told.
fn shapes<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let advice = |line: &&str| line.trim_start().starts_with('→');
    let shape = |line: &str| {
        let columns = line.split("  ").map(str::trim);
        let columns: Vec<String> = columns
            .filter(|column| !column.is_empty())
            .map(shape_of_column)
            .collect();
        match columns.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok" | "warn", subject @ ("kernel" | "UNION"), _] => subject.to_owned(),
            _ => columns.join(" | "),
        }
    };
    lines.filter(|line| !advice(line)).map(shape).collect()
}

fn shape_of_column(column: &str) -> String {
    let words: Vec<&str> = column.split(' ').collect();
    let mut shape = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let number = word.parse::<f64>().is_ok();
        let unit = words
            .peek()
            .map_or("", |unit| unit.trim_end_matches([';', ',']));
        let is_time = |word: &str| {
            let number = word.strip_suffix(['s', 'm', 'h', 'd']);
            number.is_some_and(|number| number.parse::<u64>().is_ok())
        };
        if number && ["B", "KiB", "MiB", "GiB", "%"].contains(&unit) {
            shape.push("SIZE");
            words.next();
        } else if word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            shape.push("DIGEST");
        } else if is_time(word) {
            shape.push("TIME");
        } else if word.starts_with("linux/") {
            shape.push("PLATFORM");
        } else if ["ext4,", "tmpfs,", "xfs,"].contains(word) {
            shape.push("FILESYSTEM");
        } else if column == *word && ["aufs", "overlay"].contains(word) {
            shape.push("UNION");
        } else {
            shape.push(word);
        }
    }
    shape.join(" ")
}

fn images(at: &Path) {
    let app = [
        vec![
            dir("etc"),
            file("etc/hosts", "127.0.0.1 localhost\n"),
            file("etc/motd", "welcome\n"),
            file("etc/old", "old\n"),
            dir("usr"),
            dir("usr/bin"),
            file("usr/bin/app", vec![b'a'; 106 << 10]),
        ],
        vec![
            dir("etc"),
            whiteout("etc/motd"),
            file("etc/version", "12\n"),
            dir("srv"),
        ],
    ];
    OciLayout::new(at.join("app")).image("1", &tars(&app), Compression::Gzip);
    let old = [vec![file("old", vec![b'o'; 4 << 20])]];
    OciLayout::new(at.join("old")).image("1", &tars(&old), Compression::Gzip);
    // The example of docs/policy.md is what it names FILE.
    let policy = read("docs/policy.md");
    let policy = policy.split("```yaml\n").nth(1).unwrap();
    fs::write(at.join("FILE"), policy.split("```").next().unwrap()).unwrap();
}

#[test]
fn commands_of_the_program_print_what_is_documented() {
    let mut count = 0;
    for page in pages() {
        let dir = tempfile::tempdir().unwrap();
        images(dir.path());
        count += run(&page, dir.path());
    }
    assert!(count > 25, "{count}");
}
