//! Raw settings: texts by key, from flags over the environment over a TOML file. Nothing is interpreted here; what
//! is checked is that each key exists, belongs to a part that is built, and comes in a form that can be a setting.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::{
    ConfigError,
    keys::{self, KEYS, Key, SECTIONS_NOT_BUILT, Scope},
};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// The file given by `--config`.
    File(PathBuf),
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A value as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its text; a list is joined by commas.
    pub text: String,
    /// Where it was written.
    pub origin: Origin,
}

/// All that was written, the strongest layer last.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, Written>,
}

impl Layers {
    /// Lays the flags over `TRIUNE_*` over the file. `environment` is read once, here.
    ///
    /// A `TRIUNE_*` variable that is no setting is left alone: an orchestrator injects such names for every service.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and where it was written.
    pub fn read(
        file: Option<PathBuf>,
        environment: impl Iterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static Key, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        if let Some(path) = file {
            layers.lay_file(path)?;
        }
        let environment: BTreeMap<String, String> =
            environment.filter(|(name, _)| name.starts_with("TRIUNE_")).collect();
        for key in KEYS {
            if let Some(text) = environment.get(&key.env()) {
                layers.lay(key, text.clone(), Origin::Environment)?;
            }
        }
        for (key, text) in flags {
            layers.lay(key, text, Origin::Flag)?;
        }
        Ok(layers)
    }

    /// What was written for a key.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Written> {
        self.values.get(path)
    }

    /// Puts another text where one was written, and leaves its origin.
    pub(super) fn redirect(&mut self, path: &str, text: &str) {
        if let Some(written) = self.values.get_mut(path) {
            text.clone_into(&mut written.text);
        }
    }

    /// The keys that were written.
    pub fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.values.keys().filter_map(|path| keys::find(path))
    }

    fn lay(&mut self, key: &'static Key, text: String, origin: Origin) -> Result<(), ConfigError> {
        if key.scope == Scope::NotBuilt {
            return Err(ConfigError::NotBuilt { key: key.path.to_owned(), origin });
        }
        self.values.insert(key.path, Written { text, origin });
        Ok(())
    }

    fn lay_file(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::FileUnreadable { path: path.clone(), source })?;
        let table: toml::Table = text
            .parse()
            .map_err(|source| ConfigError::FileMalformed { path: path.clone(), source: Box::new(source) })?;
        let origin = Origin::File(path);
        for (section, body) in table {
            if SECTIONS_NOT_BUILT.contains(&section.as_str()) {
                return Err(ConfigError::NotBuilt { key: section, origin });
            }
            let toml::Value::Table(body) = body else { return Err(unknown(&section, origin)) };
            for (name, value) in body {
                let written = format!("{section}.{name}");
                let key = keys::find(&written).ok_or_else(|| unknown(&written, origin.clone()))?;
                let text =
                    flatten(value).ok_or_else(|| ConfigError::BadForm { key: written, origin: origin.clone() })?;
                self.lay(key, text, origin.clone())?;
            }
        }
        Ok(())
    }
}

fn unknown(written: &str, origin: Origin) -> ConfigError {
    let built = KEYS.iter().filter(|key| key.scope != Scope::NotBuilt).map(|key| key.path);
    ConfigError::UnknownKey { key: written.to_owned(), origin, nearest: keys::nearest(written, built) }
}

/// The text of a TOML value; a list of texts is joined by commas. `None` for a table, a date, a list of lists.
fn flatten(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<String>> = items
                .into_iter()
                .map(|item| if let toml::Value::String(text) = item { Some(text) } else { None })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A file with this text; it lives as long as the handle.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("triune-layers-{}-{name}.toml", std::process::id()));
            std::fs::File::create(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .expect("a temporary file");
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect::<Vec<_>>().into_iter()
    }

    fn refused(name: &str, text: &str) -> String {
        let file = Temporary::new(name, text);
        Layers::read(Some(file.0.clone()), environment(&[]), []).expect_err("refused").to_string()
    }

    #[test]
    fn flags_lie_over_environment_over_file() {
        let file = Temporary::new(
            "order",
            "[node]\nname = 'file'\ndoors = ['etcd', 'admin']\n[etcd]\naddr = 'f:1'\ntxn_ops_max = 7\n",
        );
        let variables = environment(&[("TRIUNE_NAME", "env"), ("TRIUNE_ETCD_ADDR", "e:1"), ("TRIUNE_PORT", "tcp://x")]);
        let flag = keys::find("node.name").expect("a key");
        let layers = Layers::read(Some(file.0.clone()), variables, [(flag, "flag".to_owned())]).expect("read");
        let text = |path| layers.find(path).map(|written| (written.text.as_str(), &written.origin));
        assert_eq!(text("node.name"), Some(("flag", &Origin::Flag)));
        assert_eq!(text("etcd.addr"), Some(("e:1", &Origin::Environment)));
        assert_eq!(text("etcd.txn_ops_max"), Some(("7", &Origin::File(file.0.clone()))));
        assert_eq!(text("node.doors"), Some(("etcd,admin", &Origin::File(file.0.clone()))));
        assert_eq!(text("peer.addr"), None);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert!(refused("near", "[etcd]\nadr = 'x'\n").contains("did you mean etcd.addr?"));
        assert!(refused("section", "[etdc]\naddr = 'x'\n").contains("did you mean etcd.addr?"));
        assert!(refused("top", "name = 'x'\n").contains("there is no setting name"));
    }

    #[test]
    fn keys_of_parts_not_built_are_refused_by_name() {
        assert!(refused("redis", "[redis]\nanything = 1\n").contains("redis"));
        assert!(refused("groups", "[node]\ngroups = 4\n").contains("node.groups"));
        let variables = environment(&[("TRIUNE_KAFKA_ADDR", "x:1")]);
        assert!(matches!(Layers::read(None, variables, []), Err(ConfigError::NotBuilt { .. })));
    }

    #[test]
    fn a_file_that_is_no_configuration_says_so() {
        assert!(refused("syntax", "[node\n").contains("is not TOML"));
        assert!(refused("form", "[node]\nname = 1.5\n").contains("node.name"));
        let missing = Layers::read(Some(PathBuf::from("/nonexistent/x.toml")), environment(&[]), []);
        assert!(matches!(missing, Err(ConfigError::FileUnreadable { .. })));
    }
}
