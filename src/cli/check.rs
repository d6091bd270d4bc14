//! `check`: can this node do it, and how?

use super::CliError;
use super::output::{self, Output, OutputArgs};
use super::stage::Union;
use crate::config::ConfigFault;
use crate::config::policy::PolicyFile;
use crate::volume::Volumes;
use crate::volume::check::{CheckReport, Verdict};
use clap::builder::BoolishValueParser;
use std::io::{self, Write};
use std::path::PathBuf;

/// Say whether volumes can be published on this node, and how
///
/// Looks at the kernel, its union filesystems and the store's filesystem, and
/// mounts a small union to see that it works. Exit code 0 if volumes can be
/// published, 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which union filesystem must work: with auto, any.
    #[arg(
        long,
        env = "AUFS_CSI_UNION",
        hide_env_values = true,
        value_enum,
        default_value = "auto"
    )]
    union: Union,
    /// End with exit code 0 whatever is found, for where only the report counts.
    #[arg(
        long,
        env = "AUFS_CSI_REPORT_ONLY",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    report_only: bool,
    /// Check this policy file too, as node --policy would read it: all its faults
    /// are told at once, with exit code 64 and before anything else is done.
    #[arg(
        long,
        env = "AUFS_CSI_POLICY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(super) policy: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    /// Notes the faults of the policy file, if there is one.
    pub(super) fn check_policy(&self, faults: &mut Vec<ConfigFault>) {
        if let Some(file) = &self.policy {
            PolicyFile::noted(file, faults);
        }
    }
}

pub(super) fn run(opened: Result<Volumes, CliError>, args: &Args) -> Result<(), CliError> {
    let report = match opened {
        Ok(volumes) => volumes.check(args.union.into()),
        // It is asked for just in order to hear such things.
        Err(CliError::Open { source, .. }) => CheckReport::of_unopened(&source),
        Err(error) => return Err(error),
    };
    match args.output.output {
        Output::Json => output::json(&report)?,
        Output::Text => output::to_stdout(|out| text(out, &report))?,
    }
    if report.is_usable() || args.report_only {
        Ok(())
    } else {
        Err(CliError::Unusable)
    }
}

fn text(out: &mut dyn Write, report: &CheckReport) -> io::Result<()> {
    let width = report
        .findings
        .iter()
        .map(|finding| finding.subject.chars().count())
        .max()
        .unwrap_or(0);
    for finding in &report.findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Failed => "FAIL",
        };
        writeln!(
            out,
            "{verdict}  {:width$}  {}",
            finding.subject, finding.detail
        )?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "      {:width$}  → {remedy}", "")?;
        }
    }
    match &report.union {
        Some(union) if report.is_usable() => writeln!(out, "Volumes use {union} here."),
        _ => writeln!(out, "Volumes cannot be published here."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::Backend;
    use crate::volume::check::Finding;

    #[test]
    fn a_failed_finding_shows_its_remedy_and_decides() {
        let finding = |subject: &str, verdict, remedy: Option<&str>| Finding {
            subject: subject.to_owned(),
            verdict,
            detail: "as found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let mut report = CheckReport {
            union: Some(Backend::Overlay),
            findings: vec![
                finding("overlay", Verdict::Ok, None),
                finding("aufs", Verdict::Warning, Some("install it")),
            ],
        };
        let shown = |report: &CheckReport| {
            let mut out = Vec::new();
            text(&mut out, report).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            shown(&report),
            "ok    overlay  as found\n\
             warn  aufs     as found\n               → install it\n\
             Volumes use overlay here.\n"
        );
        assert!(report.is_usable());
        report.findings[0].verdict = Verdict::Failed;
        assert!(shown(&report).ends_with("Volumes cannot be published here.\n"));
        assert!(!report.is_usable());
        assert!(!CheckReport::default().is_usable());
    }
}
