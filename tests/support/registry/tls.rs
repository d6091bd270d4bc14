//! A certificate authority of a test's own, by the `openssl` program.

use super::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate and its key, as files in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What signs certificates in a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    pub own: Certificate,
}

impl Authority {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let own = self_signed(dir, "authority");
        Authority {
            dir: dir.to_owned(),
            own,
        }
    }

    /// A server's certificate for 127.0.0.1, localhost and registry.test.
    pub fn server(&self, name: &str) -> Certificate {
        self.issue(
            name,
            "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.test\nextendedKeyUsage=serverAuth\n",
        )
    }

    /// What a client shows.
    pub fn client(&self, name: &str) -> Certificate {
        self.issue(name, "extendedKeyUsage=clientAuth\n")
    }

    fn issue(&self, name: &str, extensions: &str) -> Certificate {
        let at = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
        let (request, file) = (at("csr"), at("ext"));
        let made = Certificate {
            certificate: at("crt"),
            key: at("key"),
        };
        fs::write(&file, format!("basicConstraints=CA:FALSE\n{extensions}")).unwrap();
        run(Command::new("openssl")
            .args(["req", "-newkey", "rsa:2048", "-nodes", "-sha256"])
            .args(["-subj", &format!("/CN={name}"), "-keyout"])
            .arg(&made.key)
            .arg("-out")
            .arg(&request));
        run(Command::new("openssl")
            .args(["x509", "-req", "-sha256", "-days", "2", "-CAcreateserial"])
            .arg("-in")
            .arg(&request)
            .arg("-CA")
            .arg(&self.own.certificate)
            .arg("-CAkey")
            .arg(&self.own.key)
            .arg("-extfile")
            .arg(&file)
            .arg("-out")
            .arg(&made.certificate));
        made
    }
}

/// A certificate that its own key signs.
pub fn self_signed(dir: &Path, name: &str) -> Certificate {
    let made = Certificate {
        certificate: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    };
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256"])
        .args(["-days", "2", "-subj", &format!("/CN={name}"), "-keyout"])
        .arg(&made.key)
        .arg("-out")
        .arg(&made.certificate));
    made
}
