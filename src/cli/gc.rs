//! `gc`: removes from the store what nobody needs, and says why the rest stays.

use super::CliError;
use super::output::{self, OutputArgs};
use crate::config::policy::PolicyFile;
use crate::config::{CollectArgs, ConfigFault};
use crate::layer::collect::{Aim, Decision, Subject, Verdict};
use crate::volume::{Collect, CollectSettings, Volumes};
use clap::builder::BoolishValueParser;
use std::path::PathBuf;

/// Remove images and layers that nobody needs
///
/// Does what the plugin does by itself from time to time: nothing while the disk
/// is below its high mark, unless something is older than the maximum age. What a
/// volume, a running pull, a mount or the plugin's list of images to prefetch
/// needs always stays. Each decision is told with its reason, the least recently
/// used first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only say what would be done.
    #[arg(
        long,
        env = "AUFS_CSI_DRY_RUN",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    dry_run: bool,

    /// Remove all that may go, however much space there is; what was used within
    /// the minimum age still stays.
    #[arg(
        long,
        env = "AUFS_CSI_ALL",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    all: bool,

    /// The plugin's policy file: what it says of collection wins over the options.
    #[arg(
        long,
        env = "AUFS_CSI_POLICY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    policy: Option<PathBuf>,

    #[command(flatten)]
    collect: CollectArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    /// When something goes.
    pub(super) fn settings(&self, faults: &mut Vec<ConfigFault>) -> Option<CollectSettings> {
        let policy = match &self.policy {
            Some(file) => PolicyFile::noted(file, faults),
            None => None,
        };
        let flags = self.collect.clone().validate(&[], faults)?;
        Some(match policy {
            Some(policy) => policy.collection(&flags),
            None => flags,
        })
    }
}

pub(super) fn run(volumes: &Volumes, args: &Args) -> Result<(), CliError> {
    let failed = CliError::volume("collect from", "the store");
    let aim = match args.all {
        true => Aim::All,
        false => Aim::Marks,
    };
    let collect = match args.dry_run {
        true => volumes.plan_collection(aim).map_err(failed)?,
        // It waits, so there is an outcome.
        false => match volumes.collect(aim, true).map_err(failed)? {
            Some(collect) => collect,
            None => return Ok(()),
        },
    };
    if args.output.output == output::Output::Json {
        return output::json(&collect);
    }
    let header = ["DECISION", "WHAT", "SIZE", "FREES", "LAST USE", "REASON"];
    output::listing(args.output.output, &collect.decisions, &header, row)?;
    summary(&collect, args.dry_run)
}

fn row(decision: &Decision) -> Vec<String> {
    let (kind, name) = match &decision.subject {
        Subject::Image(manifest) => ("image", manifest.as_str()),
        Subject::Layer(id) => ("layer", id.as_str()),
    };
    let mut what = format!("{kind} {}", output::short(name));
    if let Some(name) = decision.names.first() {
        what = format!("{what} {}", output::escaped(name.as_bytes()));
    }
    let goes = decision.verdict.goes();
    vec![
        if goes { "remove" } else { "keep" }.to_owned(),
        what,
        output::size(decision.bytes),
        match goes {
            true => output::size(decision.freed),
            false => "-".to_owned(),
        },
        output::age(decision.used),
        reason(&decision.verdict),
    ]
}

fn reason(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Expired => "not used for longer than --gc-max-age".to_owned(),
        Verdict::Space => "space is short, and it is the least recently used".to_owned(),
        Verdict::Asked => "nobody needs it".to_owned(),
        Verdict::Needed(by) => {
            let first = by.first().map_or("", String::as_str);
            let first = output::escaped(first.as_bytes());
            match by.len() {
                0 | 1 => format!("needed: {first}"),
                more => format!("needed: {first} and {} more", more - 1),
            }
        }
        Verdict::Young(left) => format!("used a moment ago; may go in {}", output::span(*left)),
        Verdict::Shared => "would free nothing: others need all of its layers".to_owned(),
        Verdict::Room => "there is space".to_owned(),
        Verdict::Doubt(why) => format!("in doubt: {}", output::escaped(why.as_bytes())),
    }
}

fn summary(collect: &Collect, dry_run: bool) -> Result<(), CliError> {
    let goes = collect.decisions.iter().filter(|it| it.verdict.goes());
    let (count, bytes) = match dry_run {
        true => goes.fold((0, 0), |(count, bytes), it| (count + 1, bytes + it.freed)),
        false => (collect.removed, collect.freed),
    };
    let what = match dry_run {
        true => "would remove",
        false => "removed",
    };
    output::to_stdout(|out| {
        writeln!(
            out,
            "{what} {count} of {}, {} of {}; the disk was {} % full",
            collect.decisions.len(),
            output::size(bytes),
            output::size(collect.store_bytes),
            collect.used_percent
        )
    })
}
