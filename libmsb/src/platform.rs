//! Platforms of images: one spelling for each operating system and architecture.
//!
//! Images name their platform as Go does (`amd64`), as the kernel does (`x86_64`) or as a
//! distribution does (`armhf`). The rules are those of containerd, which docker and others use too.

/// A platform in its normal form, such as `linux`, `arm` and `v7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NormalPlatform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Version of the architecture. `None` is the first version or an unspecified one.
    pub variant: Option<String>,
}

impl NormalPlatform {
    /// Normalizes a platform.
    pub fn of(os: &str, architecture: &str, variant: Option<&str>) -> NormalPlatform {
        let lower = |text: &str| text.trim().to_ascii_lowercase();
        let os = match lower(os) {
            os if os == "macos" => "darwin".to_owned(),
            os => os,
        };
        let variant = variant.map(lower).filter(|variant| !variant.is_empty());
        let (architecture, variant) = normalize_architecture(lower(architecture), variant);
        NormalPlatform { os, architecture, variant }
    }

    /// Returns the platform of the host.
    pub fn host() -> NormalPlatform {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        NormalPlatform::of("linux", architecture, None)
    }

    /// Returns whether the host can run an image of this platform.
    pub fn is_of_host(&self) -> bool {
        let host = NormalPlatform::host();
        self.os == host.os && self.architecture == host.architecture
    }
}

fn normalize_architecture(
    architecture: String,
    variant: Option<String>,
) -> (String, Option<String>) {
    let (name, variant) = match (architecture.as_str(), variant.as_deref()) {
        ("i386", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", _) => ("amd64", variant),
        ("aarch64" | "arm64", Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", Some("9" | "9.0" | "v9.0")) => ("arm64", Some("v9".to_owned())),
        ("aarch64" | "arm64", _) => ("arm64", variant),
        ("armhf", _) => ("arm", Some("v7".to_owned())),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("arm", Some(number @ ("5" | "6" | "7" | "8"))) => ("arm", Some(format!("v{number}"))),
        _ => return (architecture, variant),
    };
    (name.to_owned(), variant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_an_architecture_become_one() {
        for (given, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/x86-64", "linux/amd64"),
            ("LINUX/AMD64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/V3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm/v5", "linux/arm/v5"),
            ("linux/arm", "linux/arm"),
            ("linux/i386", "linux/386"),
            ("macOS/arm64/", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            let parts: Vec<&str> = given.split('/').collect();
            let platform = NormalPlatform::of(parts[0], parts[1], parts.get(2).copied());
            let variant = platform.variant.map(|variant| format!("/{variant}"));
            let found =
                format!("{}/{}{}", platform.os, platform.architecture, variant.unwrap_or_default());
            assert_eq!(found, expected, "{given}");
        }
        assert!(NormalPlatform::host().is_of_host());
    }
}
