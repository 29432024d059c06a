//! Addresses of collectors in messages.

/// Removes user and password from a URL.
pub(super) fn without_secrets(endpoint: &str) -> String {
    match (endpoint.split_once("://"), endpoint.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
        _ => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_address_is_not_repeated() {
        assert_eq!(without_secrets("http://u:p@host/x"), "http://host/x");
        assert_eq!(without_secrets("http://host/x"), "http://host/x");
    }
}
