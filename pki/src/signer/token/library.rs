//! A loaded module with its sessions: found tokens, log-ins, and what to do when one is lost.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Cause, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::{TokenKey, TokenUri, Wanted, objects};
use crate::error::Error;
use crate::signer::SignatureScheme;

/// Tries for one request: as it is, with a new session, with the module started anew.
const TRIES: usize = 3;
/// Octets of a PIN's file at most.
const MAX_PIN: usize = 256;

/// One module. Lives on its own thread.
pub(super) struct Library {
    path: PathBuf,
    module: Option<Pkcs11>,
    sessions: BTreeMap<String, Open>,
    /// SHA-256 of PINs that a token refused, by token: each further try brings the token nearer to
    /// locking itself.
    refused: BTreeMap<String, [u8; 32]>,
}

/// A token that we are logged in to.
pub(super) struct Open {
    pub(super) session: Session,
    pub(super) module: Pkcs11,
    pub(super) slot: Slot,
    pub(super) keys: BTreeMap<Vec<u8>, ObjectHandle>,
}

/// Why something did not work.
pub(super) enum Failure {
    /// The module's word.
    Module(Cause),
    /// A sentence for the operator; trying again now does not help.
    Final(Error),
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::Module(cause)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Library {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, module: None, sessions: BTreeMap::new(), refused: BTreeMap::new() }
    }

    pub(super) fn sign(
        &mut self,
        uri: &TokenUri,
        key: &TokenKey,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.with(uri, |open| objects::sign(open, key, scheme, message))
    }

    pub(super) fn probe(&mut self, uri: &TokenUri, key: &TokenKey) -> Result<(), Error> {
        self.with(uri, |open| {
            open.keys.clear();
            objects::find(open, key).map(drop)
        })
    }

    pub(super) fn take_or_make(
        &mut self,
        uri: &TokenUri,
        wanted: &Wanted,
    ) -> Result<TokenKey, Error> {
        self.with(uri, |open| objects::take_or_make(open, uri, wanted))
    }

    /// Does the work in a session of the token. A lost session is opened again, a removed token is
    /// looked for again, and at last the module is started anew.
    fn with<T>(
        &mut self,
        uri: &TokenUri,
        mut work: impl FnMut(&mut Open) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let name = uri.token_name();
        let mut last = None;
        for attempt in 1..=TRIES {
            let outcome = match self.sessions.remove(&name) {
                Some(open) => Ok(open),
                None => self.open(uri),
            };
            let outcome = outcome.and_then(|mut open| {
                let done = work(&mut open)?;
                self.sessions.insert(name.clone(), open);
                Ok(done)
            });
            match outcome {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) if attempt == TRIES => return Err(error),
                Err(Failure::Final(error)) => {
                    // A module may remember what was plugged in when it started.
                    if !matches!(error, Error::TokenAway(_)) {
                        return Err(error);
                    }
                    last = Some(error);
                }
                Err(Failure::Module(cause)) => last = Some(self.sentence(uri, &cause)),
            }
            if attempt + 1 == TRIES {
                self.stop();
            }
        }
        Err(last.unwrap_or_else(|| Error::TokenAway(format!("{name} is not reachable"))))
    }

    fn stop(&mut self) {
        self.sessions.clear();
        if let Some(module) = self.module.take() {
            // A module that cannot even stop is loaded again all the same.
            let _ = module.finalize();
        }
    }

    fn module(&mut self, uri: &TokenUri) -> Result<Pkcs11, Failure> {
        if let Some(module) = &self.module {
            return Ok(module.clone());
        }
        let module = Pkcs11::new(&self.path).map_err(|cause| {
            Failure::Final(Error::Token(format!(
                "the PKCS#11 module {} of {} cannot be loaded ({}): install it, or correct module-path",
                self.path.display(),
                uri.token_name(),
                one_line(&cause)
            )))
        })?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Cause::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(cause) => {
                return Err(Failure::Final(Error::TokenAway(format!(
                    "the PKCS#11 module {} of {} does not start ({}): look at its own configuration",
                    self.path.display(),
                    uri.token_name(),
                    one_line(&cause)
                ))));
            }
        }
        self.module = Some(module.clone());
        Ok(module)
    }

    fn open(&mut self, uri: &TokenUri) -> Result<Open, Failure> {
        let module = self.module(uri)?;
        let slot = find_token(&module, uri)?;
        let info = module.get_token_info(slot)?;
        let name = uri.token_name();
        if info.user_pin_locked() {
            return Err(Failure::Final(Error::Token(format!(
                "the PIN of {name} is locked after too many wrong ones: unlock it with the \
                 security officer's PIN"
            ))));
        }
        let pin = read_pin(uri)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, pin.as_bytes());
        if self.refused.get(&name).is_some_and(|refused| refused == digest.as_ref()) {
            return Err(Failure::Final(wrong_pin(uri)));
        }
        if info.user_pin_final_try() {
            return Err(Failure::Final(Error::Token(format!(
                "{name} allows one more try of its PIN before it locks itself: log in by hand with \
                 its own tool first"
            ))));
        }
        let session = module.open_rw_session(slot)?;
        let pin = AuthPin::from(pin.as_str());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Cause::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Cause::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                if let Ok(digest) = digest.as_ref().try_into() {
                    self.refused.insert(name, digest);
                }
                return Err(Failure::Final(wrong_pin(uri)));
            }
            Err(cause) => return Err(Failure::Module(cause)),
        }
        self.refused.remove(&name);
        Ok(Open { session, module, slot, keys: BTreeMap::new() })
    }

    fn sentence(&self, uri: &TokenUri, cause: &Cause) -> Error {
        let name = uri.token_name();
        match cause {
            Cause::Pkcs11(
                RvError::MechanismInvalid
                | RvError::FunctionNotSupported
                | RvError::CurveNotSupported
                | RvError::KeySizeRange,
                _,
            ) => Error::Token(format!(
                "{name} cannot do this ({}): choose another kind of key with ca_key_kind",
                one_line(cause)
            )),
            Cause::Pkcs11(RvError::TokenWriteProtected | RvError::SessionReadOnly, _) => {
                Error::Token(format!(
                    "{name} is write-protected: make the key with its own tool and name it in the \
                     URI by object and id"
                ))
            }
            Cause::Pkcs11(RvError::UserPinNotInitialized, _) => {
                Error::Token(format!("{name} has no user PIN yet: set one with its own tool"))
            }
            _ => Error::TokenAway(format!(
                "{name} does not work ({}): look at the device and its module {}; it is tried \
                 again with the next signature",
                one_line(cause),
                self.path.display()
            )),
        }
    }
}

fn find_token(module: &Pkcs11, uri: &TokenUri) -> Result<Slot, Failure> {
    let mut found = None;
    let mut others = Vec::new();
    for slot in module.get_slots_with_token()? {
        // A token that is being pulled out is as good as none.
        let Ok(info) = module.get_token_info(slot) else { continue };
        if !info.token_initialized() {
            continue;
        }
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == value.trim_end())
        };
        if is(&uri.token, info.label())
            && is(&uri.serial, info.serial_number())
            && is(&uri.manufacturer, info.manufacturer_id())
            && is(&uri.model, info.model())
        {
            if found.replace(slot).is_some() {
                return Err(Failure::Final(Error::Token(format!(
                    "several tokens are {}: add serial= to the URI",
                    uri.token_name()
                ))));
            }
        } else {
            others.push(format!("\"{}\"", info.label().trim_end()));
        }
    }
    found.ok_or_else(|| {
        let there = match others.is_empty() {
            true => "it shows no token".to_owned(),
            false => format!("it shows {}", others.join(", ")),
        };
        Failure::Final(Error::TokenAway(format!(
            "{} is not there: plug it in, or correct the URI (module {}: {there})",
            uri.token_name(),
            uri.module.display()
        )))
    })
}

fn read_pin(uri: &TokenUri) -> Result<Zeroizing<String>, Error> {
    let octets = std::fs::read(&uri.pin_file).map(Zeroizing::new).map_err(|cause| {
        Error::file("read the token's PIN", &uri.pin_file, &cause, "correct pin-source or its mode")
    })?;
    #[cfg(unix)]
    if std::fs::metadata(&uri.pin_file)
        .is_ok_and(|found| std::os::unix::fs::MetadataExt::mode(&found) & 0o077 != 0)
    {
        return Err(Error::Token(format!(
            "others can read the PIN in {0}: chmod 600 {0}",
            uri.pin_file.display()
        )));
    }
    let text = std::str::from_utf8(&octets).ok().map(|text| text.trim_end_matches(['\r', '\n']));
    text.filter(|pin| !pin.is_empty() && pin.len() <= MAX_PIN)
        .map(|pin| Zeroizing::new(pin.to_owned()))
        .ok_or_else(|| {
            Error::Token(format!(
                "{} does not hold a PIN: write it as one line of text",
                uri.pin_file.display()
            ))
        })
}

fn wrong_pin(uri: &TokenUri) -> Error {
    Error::Token(format!(
        "{} refused the PIN in {}: correct the file; the same PIN is not tried again, because wrong \
         ones lock the token",
        uri.token_name(),
        uri.pin_file.display()
    ))
}

/// A module's words in one line.
pub(super) fn one_line(cause: &Cause) -> String {
    let words = match cause {
        Cause::Pkcs11(value, function) => format!("{function} gave {value:?}"),
        other => other.to_string(),
    };
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
