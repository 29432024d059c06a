//! Files in and out: a table of the host is summed in a guest.
//!
//! ```text
//! cargo run --example data-files -- alpine
//! ```

use libmsb::sdk::{Code, Error, ExecOptions, Sandbox};

const PROGRAM: &str = "awk -F, 'NR > 1 { sum[$1] += $2 } END { for (k in sum) print k \",\" sum[k] }' \
    in.csv | sort > out.csv";

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    print!("{}", sums(&image, "name,count\nred,1\nblue,2\nred,40\n")?);
    Ok(())
}

/// Sums a table by its first column. Returns the result.
pub(crate) fn sums(image: &str, table: &str) -> Result<String, Error> {
    let sandbox = Sandbox::builder("example-data").image(image).create()?;
    let files = sandbox.fs();
    files.write("/root/in.csv", table)?;
    let options = ExecOptions { cwd: Some("/root".into()), ..ExecOptions::default() };
    let output = sandbox.shell_with(PROGRAM, options)?;
    let result = match output.success() {
        true => files.read_to_string("/root/out.csv"),
        false => Err(Error::new(Code::Failed, output.stderr_text())),
    };
    sandbox.kill()?;
    sandbox.remove()?;
    result
}
