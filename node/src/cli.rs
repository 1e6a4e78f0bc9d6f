//! The command line: what a person types, turned into resolved settings and one call.
//!
//! It decides nothing about the cluster. Members are run by the functions in [`Faces`], which the binary plugs in;
//! a face that is not plugged in is not listed by `--help`. Every other command is a client of any etcd-compatible
//! server.

mod client;

use std::{path::PathBuf, process::ExitCode};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches, Parser, Subcommand};

use crate::{
    bench,
    config::{
        ConfigError, Dev, Layers, Resolved,
        keys::{KEYS, Key, Scope},
    },
};

/// What the binary runs members with. Each returns when the member has stopped, with the code to exit with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faces {
    /// `triune start`.
    pub start: Option<fn(Resolved) -> ExitCode>,
    /// `triune dev`.
    pub dev: Option<fn(Dev) -> ExitCode>,
}

/// Parses the arguments of this process and runs the command.
#[must_use]
pub fn run(faces: Faces) -> ExitCode {
    let mut matches = command(faces).get_matches();
    let cli = match Cli::from_arg_matches_mut(&mut matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Face::Start(settings) => {
            settings.layers().and_then(|layers| Resolved::start(&layers)).map_or_else(refuse, |it| {
                print_settings(&it);
                faces.start.map_or(ExitCode::FAILURE, |start| start(it))
            })
        }
        Face::Dev(options) => options.resolve().map_or_else(refuse, |it| {
            it.members.iter().for_each(print_settings);
            faces.dev.map_or(ExitCode::FAILURE, |dev| dev(it))
        }),
        Face::Status(options) => client::run(client::status(options)),
        Face::Member(MemberFace::List(options)) => client::run(client::member_list(options)),
        Face::Bench(BenchFace::Etcd(options)) => bench::run(options),
    }
}

/// The command as clap sees it, without the faces that are not plugged in.
fn command(faces: Faces) -> Command {
    let absent = |command: Command| command.hide(true);
    let mut command = Cli::command();
    if faces.start.is_none() {
        command = command.mut_subcommand("start", absent);
    }
    if faces.dev.is_none() {
        command = command.mut_subcommand("dev", absent);
    }
    command
}

fn refuse(error: ConfigError) -> ExitCode {
    eprintln!("triune: {}", chain(&error));
    ExitCode::from(EXIT_USAGE)
}

/// An error with its causes, one after the other.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Says on stderr which settings hold, and where each comes from.
fn print_settings(resolved: &Resolved) {
    eprintln!("# {}: settings", resolved.node.name);
    for setting in resolved.settings() {
        eprintln!("{} = {:?}  # {}", setting.key, setting.value, setting.origin);
    }
}

#[derive(Debug, Parser)]
#[command(name = "triune", version, about = "Three stores and one commit", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Face,
}

#[derive(Debug, Subcommand)]
enum Face {
    /// Run a whole cluster in this process, on loopback, to try things out
    Dev(DevOptions),
    /// Run one member of a cluster
    Start(Settings),
    /// Show each member's version, role, log position and store size
    Status(client::Target),
    /// Look at the members of the cluster
    #[command(subcommand)]
    Member(MemberFace),
    /// Measure a server under load
    #[command(subcommand)]
    Bench(BenchFace),
}

#[derive(Debug, Subcommand)]
enum MemberFace {
    /// List the members with their addresses
    List(client::Target),
}

#[derive(Debug, Subcommand)]
enum BenchFace {
    /// Load any server that speaks the etcd v3 API
    Etcd(bench::Options),
}

#[derive(Debug, Args)]
struct DevOptions {
    /// Empty the data directories first
    #[arg(long)]
    fresh: bool,
    /// Add this to every port
    #[arg(long, value_name = "K", default_value_t = 0)]
    port_offset: u16,
    /// Number of members, 1 to 5
    #[arg(long, value_name = "N", default_value_t = 3)]
    members: u16,
    #[command(flatten)]
    settings: DevSettings,
}

impl DevOptions {
    fn resolve(self) -> Result<Dev, ConfigError> {
        Dev::resolve(&self.settings.0.layers()?, self.fresh, self.members, self.port_offset)
    }
}

/// The settings given as flags, and the file given by `--config`.
#[derive(Debug, Default)]
struct Settings {
    file: Option<PathBuf>,
    flags: Vec<(&'static Key, String)>,
}

/// As [`Settings`], but only what applies to `dev` is listed.
#[derive(Debug)]
struct DevSettings(Settings);

impl Settings {
    fn layers(self) -> Result<Layers, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.to_string_lossy().into_owned())));
        let file = self.file.or_else(|| std::env::var_os("TRIUNE_CONFIG").map(PathBuf::from));
        Layers::read(file, environment, self.flags)
    }

    fn augment(mut command: Command, listed: fn(Scope) -> bool) -> Command {
        command = command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Settings in TOML; TRIUNE_* variables lie over it, flags over both [env: TRIUNE_CONFIG]"),
        );
        for key in KEYS {
            let help = match key.default {
                Some(default) if default != "false" => format!("{} [default: {default}]", key.help),
                _ => key.help.to_owned(),
            };
            let arg = Arg::new(key.path).long(key.flag).help(help).hide(!listed(key.scope));
            command = command.arg(if key.default == Some("false") {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
            } else {
                arg.action(ArgAction::Set).value_name("VALUE")
            });
        }
        command
    }

    fn collect(matches: &ArgMatches) -> Self {
        let text = |key: &Key| matches.get_one::<String>(key.path).cloned();
        let flags = KEYS.iter().filter_map(|key| Some((key, text(key)?))).collect();
        Self { file: matches.get_one::<PathBuf>("config").cloned(), flags }
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::collect(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::collect(matches);
        Ok(())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        Self::augment(command, |scope| scope != Scope::NotBuilt)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DevSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(Settings::collect(matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = Settings::collect(matches);
        Ok(())
    }
}

impl Args for DevSettings {
    fn augment_args(command: Command) -> Command {
        Settings::augment(command, |scope| scope == Scope::Both)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// `EX_USAGE` of sysexits.
const EXIT_USAGE: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Faces = Faces { start: Some(|_| ExitCode::SUCCESS), dev: Some(|_| ExitCode::SUCCESS) };

    fn parse(line: &str) -> Result<Face, clap::Error> {
        let mut matches = command(BOTH).try_get_matches_from(line.split_whitespace())?;
        Cli::from_arg_matches_mut(&mut matches).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_promised_form_of_start_parses() {
        let line = "triune start --name m0 --data-dir D --peer-addr 127.0.0.1:7001 --doors etcd --etcd-addr \
                    127.0.0.1:7002 --initial-cluster m0=127.0.0.1:7001,m1=127.0.0.1:7101,m2=127.0.0.1:7201";
        let Ok(Face::Start(settings)) = parse(line) else { panic!("start parses") };
        assert_eq!(settings.flags.len(), 6);
        let layers = Layers::read(None, std::iter::empty(), settings.flags).expect("read");
        assert_eq!(Resolved::start(&layers).expect("holds").node.name, "m0");
    }

    #[test]
    fn insecure_needs_no_value() {
        let Ok(Face::Start(settings)) = parse("triune start --insecure --name x") else { panic!("start parses") };
        assert!(settings.flags.iter().any(|(key, text)| key.path == "node.insecure" && text == "true"));
    }

    #[test]
    fn a_flag_of_a_part_not_built_is_refused_by_name() {
        let Ok(Face::Start(settings)) = parse("triune start --redis-addr x:1") else { panic!("known by name") };
        let error = Layers::read(None, std::iter::empty(), settings.flags).expect_err("refused");
        assert!(error.to_string().contains("redis.addr"));
    }

    #[test]
    fn help_lists_only_what_is_built() {
        let help = |path: &[&str], faces| {
            let mut command = command(faces);
            for name in path {
                command = command.find_subcommand(name).expect("a command").clone();
            }
            command.render_long_help().to_string()
        };
        let start = help(&["start"], BOTH);
        for key in KEYS {
            assert_eq!(start.contains(&format!("--{}", key.flag)), key.scope != Scope::NotBuilt, "{}", key.flag);
        }
        let dev = help(&["dev"], BOTH);
        assert!(dev.contains("--port-offset") && dev.contains("--disk") && !dev.contains("--initial-cluster"));
        assert!(!help(&[], Faces::default()).contains("Run one member"));
    }
}
