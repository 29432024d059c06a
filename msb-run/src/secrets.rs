//! Values of secrets: read from their sources by the command that starts a sandbox, in the user's
//! name, and passed on in a sealed memory file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::net::intercept::SecretValues;
use libmsb::net::secret::{SecretSource, SecretSpec, VALUE_BYTES_MAX, check_value};
use libmsb::state::spec::Spec;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};

/// Timeout of a command that prints a value.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of checks for the end of a command.
const COMMAND_CHECK: Duration = Duration::from_millis(10);
/// Longest output of a source, in bytes.
const SOURCE_BYTES_MAX: u64 = 2 * VALUE_BYTES_MAX as u64;

/// Reads the values of a sandbox's secrets. Returns a file with them, or `None` without secrets.
pub(crate) fn resolve(spec: &Spec) -> anyhow::Result<Option<OwnedFd>> {
    resolve_with(spec, &SecretValues::new())
}

/// Reads the values of a sandbox's secrets, except those that are given for secrets without a
/// source. Returns a file with them, or `None` without secrets.
pub(crate) fn resolve_with(spec: &Spec, given: &SecretValues) -> anyhow::Result<Option<OwnedFd>> {
    let secrets = &spec.net.tls.secrets;
    if secrets.is_empty() {
        return Ok(None);
    }
    let values = secrets.iter().map(|secret| {
        let given = given.get(&secret.name).filter(|_| secret.source.is_none());
        Ok((secret.name.clone(), given.map_or_else(|| value(secret), |given| Ok(given.clone()))?))
    });
    let values = values.collect::<anyhow::Result<SecretValues>>()?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("msb-secrets", flags).context("cannot create a memory file")?;
    let mut file = File::from(file);
    file.write_all(&serde_json::to_vec(&values)?).context("cannot write a memory file")?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).context("cannot seal a memory file")?;
    seek(&file, SeekFrom::Start(0)).context("cannot read a memory file")?;
    Ok(Some(file.into()))
}

/// Reads the value of a secret. No error contains it.
fn value(secret: &SecretSpec) -> anyhow::Result<String> {
    let source = secret.source();
    let cannot = |why: String| {
        let hint = format!("--secret-from {}=SOURCE sets another source", secret.name);
        Failure::failed(format!("cannot read secret {} from {source}: {why}", secret.name))
            .hint(hint)
    };
    let bytes = read(&source).map_err(|error| cannot(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| cannot("not UTF-8".to_owned()))?;
    let text = match source {
        SecretSource::Command(_) => text.lines().next().unwrap_or_default(),
        SecretSource::Env(_) => &text,
        _ => text.strip_suffix('\n').unwrap_or(&text),
    };
    check_value(&secret.name, text)?;
    Ok(text.to_owned())
}

fn read(source: &SecretSource) -> io::Result<Vec<u8>> {
    match source {
        SecretSource::Env(name) => {
            let value = std::env::var_os(name).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "the variable is not set")
            })?;
            Ok(std::os::unix::ffi::OsStringExt::into_vec(value))
        }
        SecretSource::File(path) => read_all(File::open(path)?),
        SecretSource::Descriptor(number) => {
            // SAFETY: the descriptor is only duplicated, and that fails if it is not open.
            let inherited = unsafe { BorrowedFd::borrow_raw(*number) };
            let file = rustix::io::fcntl_dupfd_cloexec(inherited, 3)?;
            read_all(File::from(file))
        }
        SecretSource::Credential(name) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "CREDENTIALS_DIRECTORY is not set")
            })?;
            read_all(File::open(PathBuf::from(directory).join(Path::new(name)))?)
        }
        SecretSource::Command(command) => run(command, COMMAND_TIMEOUT),
    }
}

fn read_all(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(SOURCE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SOURCE_BYTES_MAX {
        return Err(io::Error::other("longer than 64 KiB"));
    }
    Ok(bytes)
}

/// Runs a shell command, with this terminal as its input and its errors. Returns its output.
fn run(command: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut child = Command::new("/bin/sh").args(["-c", command]).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    rustix::io::ioctl_fionbio(output.as_fd(), true)?;
    let deadline = Instant::now() + timeout;
    let (mut bytes, mut ended) = (Vec::new(), false);
    let mut result = loop {
        let mut some = [0; 4096];
        match output.read(&mut some) {
            Ok(0) => ended = true,
            Ok(count) => bytes.extend_from_slice(&some[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(COMMAND_CHECK);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if bytes.len() as u64 > SOURCE_BYTES_MAX {
            break Err(io::Error::other("the command printed more than 64 KiB"));
        }
        if ended && let Some(status) = child.try_wait()? {
            break Ok(status);
        }
        if Instant::now() >= deadline {
            break Err(io::Error::other("the command did not end within 60 seconds"));
        }
        if ended {
            std::thread::sleep(COMMAND_CHECK);
        }
    };
    if result.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    if let Ok(status) = &result
        && !status.success()
    {
        result = Err(io::Error::other(format!("the command failed with {status}")));
    }
    result.map(|_| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(source: &str) -> anyhow::Result<String> {
        let mut secret: SecretSpec = "CANARY@a.test".parse().unwrap();
        secret.source = Some(source.parse().unwrap());
        value(&secret)
    }

    #[test]
    fn a_value_comes_from_a_file_a_descriptor_or_a_command() {
        use std::os::fd::AsRawFd;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value");
        std::fs::write(&path, "one two\n").unwrap();
        assert_eq!(from(&format!("file:{}", path.display())).unwrap(), "one two");
        let file = File::open(&path).unwrap();
        assert_eq!(from(&format!("fd:{}", file.as_raw_fd())).unwrap(), "one two");
        assert_eq!(from("cmd:printf 'first\\nsecond\\n'").unwrap(), "first");
    }

    #[test]
    fn an_error_names_the_source_and_not_the_value() {
        let error = |source: &str| format!("{:#}", from(source).unwrap_err());
        assert!(error("file:/none").contains("file:/none"));
        assert!(error("env:MSB_TEST_NONE").contains("not set"));
        assert!(error("cmd:echo value; exit 3").contains("exit status: 3"));
        assert!(error("cmd:true").contains("is empty"));
        assert!(error("cmd:yes value").contains("more than 64 KiB"));
        for wrong in ["cmd:printf 'hun\\001ter2'", "cmd:printf 'hun\\377ter2'"] {
            assert!(!error(wrong).replace(wrong, "").contains("ter2"));
        }
        let slow = run("sleep 5", Duration::from_millis(20)).unwrap_err();
        assert!(slow.to_string().contains("did not end"));
    }
}
