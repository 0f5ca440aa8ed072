//! PKCS#11 URIs (RFC 7512), as they name the token of the CA's keys in the configuration.
//!
//! Strict: what is not understood is refused, because a CA's key in another token than was meant is
//! worse than no CA.

use std::path::PathBuf;

use crate::error::Error;

const EXAMPLE: &str =
    "pkcs11:token=TOKEN;object=NAME?module-path=/usr/lib/MODULE.so&pin-source=file:/path/to/pin";

/// A token with the names of the CA's keys in it, the module that reaches it, and where its PIN is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenUri {
    /// The token's label.
    pub token: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The token's manufacturer.
    pub manufacturer: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The label of the issuing CA's key; other keys get labels made of it.
    pub object: String,
    /// The identifier (`CKA_ID`) of an existing key.
    pub id: Option<Vec<u8>>,
    /// The module.
    pub module: PathBuf,
    /// The file with the PIN.
    pub pin_file: PathBuf,
}

impl TokenUri {
    /// What every such URI begins with.
    pub const SCHEME: &str = "pkcs11:";

    /// Parses `pkcs11:token=...;object=...?module-path=...&pin-source=file:...`.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the attribute that is wrong or missing. Values of `pin-value` are
    /// never repeated.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let rest = text
            .strip_prefix(Self::SCHEME)
            .ok_or_else(|| invalid(format!("a token is named by {EXAMPLE}")))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let (mut object, mut module, mut pin) = (None, None, None);
        for (name, value) in attributes(path, ';') {
            let value = value.ok_or_else(|| no_value(name))?;
            match name {
                "token" => once(name, &mut uri.token, text_of(name, value)?)?,
                "serial" => once(name, &mut uri.serial, text_of(name, value)?)?,
                "manufacturer" => once(name, &mut uri.manufacturer, text_of(name, value)?)?,
                "model" => once(name, &mut uri.model, text_of(name, value)?)?,
                "object" => once(name, &mut object, text_of(name, value)?)?,
                "id" => once(name, &mut uri.id, decode(name, value)?)?,
                "type" if value == "private" => {}
                "type" => {
                    return Err(invalid("type must be private, or be left out".to_owned()));
                }
                _ => return Err(unknown(name, "token, serial, manufacturer, model, object, id")),
            }
        }
        for (name, value) in attributes(query, '&') {
            let value = value.ok_or_else(|| no_value(name))?;
            match name {
                "module-path" => once(name, &mut module, text_of(name, value)?)?,
                "pin-source" => once(name, &mut pin, text_of(name, value)?)?,
                "pin-value" => {
                    return Err(invalid(
                        "a PIN does not belong into a configuration: write it to a file that only \
                         root reads and give pin-source=file:/path/to/pin instead of pin-value"
                            .to_owned(),
                    ));
                }
                _ => return Err(unknown(name, "module-path, pin-source")),
            }
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(missing("token (its label) or serial"));
        }
        uri.object = object.ok_or_else(|| missing("object, the label of the CA's key"))?;
        if uri.object.is_empty() || uri.object.len() > 64 {
            return Err(invalid("object must have 1 to 64 octets".to_owned()));
        }
        if uri.id.as_ref().is_some_and(Vec::is_empty) {
            return Err(invalid("id is empty: give it as %01%02 or leave it out".to_owned()));
        }
        let module = PathBuf::from(module.ok_or_else(|| missing("module-path"))?);
        if !module.is_absolute() {
            return Err(invalid("module-path must be an absolute path".to_owned()));
        }
        let pin = pin.ok_or_else(|| missing("pin-source"))?;
        let file = pin.strip_prefix("file:").unwrap_or(&pin);
        let file = file.strip_prefix("//").unwrap_or(file);
        if !file.starts_with('/') {
            return Err(invalid(
                "pin-source must be file: and an absolute path; |commands are not run".to_owned(),
            ));
        }
        (uri.module, uri.pin_file) = (module, PathBuf::from(file));
        Ok(uri)
    }

    /// The token for operators, such as `token "runnel"`.
    pub fn token_name(&self) -> String {
        match (&self.token, &self.serial) {
            (Some(token), Some(serial)) => format!("token \"{token}\" (serial {serial})"),
            (Some(token), None) => format!("token \"{token}\""),
            (None, serial) => format!("the token of serial {}", serial.as_deref().unwrap_or("?")),
        }
    }
}

fn attributes(part: &str, separator: char) -> impl Iterator<Item = (&str, Option<&str>)> {
    part.split(separator).filter(|attribute| !attribute.is_empty()).map(|attribute| match attribute
        .split_once('=')
    {
        Some((name, value)) => (name, Some(value)),
        None => (attribute, None),
    })
}

fn once<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{name} is there twice"))),
    }
}

fn text_of(name: &str, value: &str) -> Result<String, Error> {
    String::from_utf8(decode(name, value)?)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| invalid(format!("{name} is no text in UTF-8")))
}

/// RFC 7512 2.3: everything but a few characters is written as `%` and two digits.
fn decode(name: &str, value: &str) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(value.len());
    let mut octets = value.bytes();
    while let Some(octet) = octets.next() {
        match octet {
            b'%' => {
                let digit = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16));
                let (high, low) = (digit(octets.next()), digit(octets.next()));
                let value =
                    high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
                out.push(value.ok_or_else(|| {
                    invalid(format!("{name} has a % that two hexadecimal digits do not follow"))
                })?);
            }
            b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | b'#' => {
                return Err(invalid(format!(
                    "{name} has {:?}, which is written as %{octet:02X} in a URI",
                    char::from(octet)
                )));
            }
            0..0x20 | 0x7f.. => {
                return Err(invalid(format!("{name} has an octet to be written as %{octet:02X}")));
            }
            _ => out.push(octet),
        }
    }
    Ok(out)
}

fn invalid(what: String) -> Error {
    Error::Invalid(format!("the PKCS#11 URI is not usable: {what}"))
}

fn no_value(name: &str) -> Error {
    invalid(format!("{name} has no value: attributes are NAME=VALUE"))
}

fn unknown(name: &str, known: &str) -> Error {
    invalid(format!("{name} is not understood here: there are {known}"))
}

fn missing(what: &str) -> Error {
    invalid(format!("{what} is missing: {EXAMPLE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "pkcs11:token=My%20token;serial=0a1b;manufacturer=M;model=X;object=ca;id=%01%fF;type=private?module-path=/usr/lib/m.so&pin-source=file:/etc/pin";

    #[test]
    fn a_uri_of_rfc_7512_is_read() {
        let uri = TokenUri::parse(WHOLE).unwrap();
        assert_eq!(uri.token.as_deref(), Some("My token"));
        assert_eq!(uri.serial.as_deref(), Some("0a1b"));
        assert_eq!((uri.object.as_str(), uri.id.as_deref()), ("ca", Some(&[1, 255][..])));
        assert_eq!(uri.module, PathBuf::from("/usr/lib/m.so"));
        assert_eq!(uri.pin_file, PathBuf::from("/etc/pin"));
        for pin in ["file:///etc/pin", "/etc/pin"] {
            let text = format!("pkcs11:token=t;object=o?pin-source={pin}&module-path=/m.so");
            assert_eq!(TokenUri::parse(&text).unwrap().pin_file, PathBuf::from("/etc/pin"));
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_pin_is_repeated() {
        let tail = "?module-path=/m.so&pin-source=file:/p";
        for (text, named) in [
            (format!("pkcs11:object=o{tail}"), "token"),
            (format!("pkcs11:token=t{tail}"), "object"),
            (format!("pkcs11:token=t;token=u;object=o{tail}"), "twice"),
            (format!("pkcs11:token=t;object=o;colour=red{tail}"), "colour"),
            (format!("pkcs11:token=t;object=o;type=cert{tail}"), "type"),
            (format!("pkcs11:token=t;object{tail}"), "no value"),
            (format!("pkcs11:token=t;object=%4{tail}"), "hexadecimal"),
            (format!("pkcs11:token=t;object=%zz{tail}"), "hexadecimal"),
            (format!("pkcs11:token=a b;object=o{tail}"), "%20"),
            (format!("pkcs11:token=t;object=o;id={tail}"), "id is empty"),
            ("pkcs11:token=t;object=o?pin-source=file:/p".to_owned(), "module-path"),
            ("pkcs11:token=t;object=o?module-path=/m.so".to_owned(), "pin-source"),
            ("pkcs11:token=t;object=o?module-path=m.so&pin-source=/p".to_owned(), "absolute"),
            ("pkcs11:token=t;object=o?module-path=/m&pin-source=|sh".to_owned(), "%7C"),
            ("pkcs11:token=t;object=o?module-path=/m&pin-source=p".to_owned(), "absolute path"),
            ("pkcs11:token=t;object=o?module-path=/m&pin-value=1234".to_owned(), "pin-source"),
            ("file:/key".to_owned(), "pkcs11:token="),
        ] {
            let error = TokenUri::parse(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
            assert!(!error.contains("1234") && !error.contains('\n'), "{error}");
        }
    }
}
