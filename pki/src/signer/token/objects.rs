//! Keys in a token: finding, making, reading their public halves, signing.

use cryptoki::error::{Error as Cause, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use der::asn1::{AnyRef, OctetStringRef, UintRef};
use der::{Decode, Encode, Tag};
use ring::digest::{self, SHA256, SHA384, SHA512};

use super::library::{Failure, Open};
use super::{TokenKey, TokenUri, Wanted};
use crate::error::Error;
use crate::issue::hex;
use crate::signer::{KeyAlgorithm, KeyKind, RawKey, SignatureScheme};

/// Object identifiers of curves, DER (`CKA_EC_PARAMS`).
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];
const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
/// The name by which older modules know the last: a PrintableString.
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";
/// A CA's RSA key has at least so many bits.
const MIN_RSA_BITS: usize = 3_072;

/// DigestInfo up to the digest (RFC 8017 9.2, note 1).
const INFO_SHA256: &[u8] =
    &[0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];
const INFO_SHA384: &[u8] =
    &[0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30];
const INFO_SHA512: &[u8] =
    &[0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40];

/// Signs; what the token gets is a digest, but for Ed25519.
pub(super) fn sign(
    open: &mut Open,
    key: &TokenKey,
    scheme: SignatureScheme,
    message: &[u8],
) -> Result<Vec<u8>, Failure> {
    use SignatureScheme as Scheme;
    let handle = find(open, key)?;
    let session = &open.session;
    let rsa = |info: &[u8], algorithm| {
        let digest = digest::digest(algorithm, message);
        let data = [info, digest.as_ref()].concat();
        session.sign(&Mechanism::RsaPkcs, handle, &data).map_err(Failure::from)
    };
    match scheme {
        Scheme::EcdsaAsn1 | Scheme::EcdsaFixed => {
            let p384 = key.algorithm == KeyAlgorithm::EcdsaP384;
            let digest = digest::digest(if p384 { &SHA384 } else { &SHA256 }, message);
            let fixed = session.sign(&Mechanism::Ecdsa, handle, digest.as_ref())?;
            match scheme {
                Scheme::EcdsaAsn1 => Ok(ecdsa_der(&fixed)?),
                _ => Ok(fixed),
            }
        }
        Scheme::Ed25519 => {
            let pure = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
            Ok(session.sign(&pure, handle, message)?)
        }
        Scheme::RsaPkcs1Sha256 => rsa(INFO_SHA256, &SHA256),
        Scheme::RsaPkcs1Sha384 => rsa(INFO_SHA384, &SHA384),
        Scheme::RsaPkcs1Sha512 => rsa(INFO_SHA512, &SHA512),
        Scheme::RsaPssSha256 | Scheme::RsaPssSha384 | Scheme::RsaPssSha512 => Err(Failure::Final(
            Error::Crypto("the signature scheme does not fit the key in the token"),
        )),
    }
}

/// The private key of a reference.
pub(super) fn find(open: &mut Open, key: &TokenKey) -> Result<ObjectHandle, Failure> {
    if let Some(handle) = open.keys.get(&key.id) {
        return Ok(*handle);
    }
    let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(key.id.clone())];
    let handles = open.session.find_objects(&template)?;
    match handles.as_slice() {
        [handle] => {
            open.keys.insert(key.id.clone(), *handle);
            Ok(*handle)
        }
        [] => Err(Failure::Final(Error::Token(format!(
            "the CA's {} (id {}) is not in the token any more: bring it back from the token's \
             backup",
            key.name(),
            hex(&key.id)
        )))),
        _ => Err(Failure::Final(Error::Token(format!(
            "several keys of the token have the id {} of the CA's {}: give the others another",
            hex(&key.id),
            key.name()
        )))),
    }
}

/// Takes the key of the wanted label when it is there and no CA's yet; makes one otherwise.
pub(super) fn take_or_make(
    open: &mut Open,
    uri: &TokenUri,
    wanted: &Wanted,
) -> Result<TokenKey, Failure> {
    let mut template =
        vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label(&wanted.label))];
    template.extend(wanted.id.iter().map(|id| Attribute::Id(id.clone())));
    let handles = open.session.find_objects(&template)?;
    let mut label_is_free = true;
    let mut usable = Vec::new();
    for handle in handles {
        label_is_free = false;
        let found = describe(open, uri, handle, &wanted.label)?;
        if !wanted.taken.contains(&found.public_key) {
            usable.push(found);
        }
    }
    match usable.as_slice() {
        [] if wanted.id.is_some() && label_is_free => Err(Failure::Final(Error::Token(format!(
            "{} has no private key \"{}\" with that id: correct object and id, or leave id out to \
             have a key made",
            uri.token_name(),
            wanted.label
        )))),
        [] => make(open, uri, wanted, label_is_free),
        [found] if fits(found.algorithm, wanted.kind) => Ok(found.clone()),
        [found] => Err(Failure::Final(Error::Token(format!(
            "{} has a key \"{}\" already, of another kind ({:?}) than {}: ask for its kind, or name \
             another object",
            uri.token_name(),
            wanted.label,
            found.algorithm,
            wanted.kind
        )))),
        _ => Err(Failure::Final(Error::Token(format!(
            "{} has several keys \"{}\": add the id of the one that is meant to the URI",
            uri.token_name(),
            wanted.label
        )))),
    }
}

fn fits(algorithm: KeyAlgorithm, kind: KeyKind) -> bool {
    match kind {
        KeyKind::EcdsaP256 => algorithm == KeyAlgorithm::EcdsaP256,
        KeyKind::EcdsaP384 => algorithm == KeyAlgorithm::EcdsaP384,
        KeyKind::Ed25519 => algorithm == KeyAlgorithm::Ed25519,
        KeyKind::Rsa3072 | KeyKind::Rsa4096 => algorithm == KeyAlgorithm::Rsa,
    }
}

fn make(
    open: &mut Open,
    uri: &TokenUri,
    wanted: &Wanted,
    label_is_free: bool,
) -> Result<TokenKey, Failure> {
    let name = match label_is_free {
        true => wanted.label.clone(),
        false => {
            let mark: String = hex(&wanted.fresh_id).chars().take(8).collect();
            format!("{}-{mark}", wanted.label)
        }
    };
    // The pair may be there already: an attempt before this one made it and failed afterwards.
    let made = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(wanted.fresh_id.clone())];
    if let Some(made) = open.session.find_objects(&made)?.into_iter().next() {
        return describe(open, uri, made, &name);
    }
    let (mechanism, parameters) = match wanted.kind {
        KeyKind::EcdsaP256 => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(P256.to_vec())]),
        KeyKind::EcdsaP384 => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(P384.to_vec())]),
        KeyKind::Ed25519 => {
            let known = open.module.get_mechanism_list(open.slot)?;
            if !known.contains(&MechanismType::EDDSA) {
                return Err(Failure::Final(Error::Token(format!(
                    "{} has no Ed25519 (CKM_EDDSA): choose another kind of key with ca_key_kind",
                    uri.token_name()
                ))));
            }
            (Mechanism::EccEdwardsKeyPairGen, vec![Attribute::EcParams(ED25519.to_vec())])
        }
        KeyKind::Rsa3072 => (Mechanism::RsaPkcsKeyPairGen, rsa_parameters(3_072)),
        KeyKind::Rsa4096 => (Mechanism::RsaPkcsKeyPairGen, rsa_parameters(4_096)),
    };
    let generate = |parameters: Vec<Attribute>| {
        let common = [
            Attribute::Token(true),
            Attribute::Label(label(&name)),
            Attribute::Id(wanted.fresh_id.clone()),
        ];
        let mut public = parameters;
        public.extend(common.iter().cloned());
        public.extend([Attribute::Private(false), Attribute::Verify(true)]);
        let mut private = common.to_vec();
        private.extend([
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ]);
        open.session.generate_key_pair(&mechanism, &public, &private)
    };
    let made = match generate(parameters) {
        // Before PKCS#11 3.0 the curve had a name instead of an object identifier.
        Err(Cause::Pkcs11(RvError::DeviceRemoved, function)) => {
            Err(Cause::Pkcs11(RvError::DeviceRemoved, function))
        }
        Err(_) if wanted.kind == KeyKind::Ed25519 => {
            generate(vec![Attribute::EcParams(EDWARDS25519.to_vec())])
        }
        made => made,
    };
    let (_, private) = made?;
    describe(open, uri, private, &name)
}

fn rsa_parameters(bits: u32) -> Vec<Attribute> {
    vec![Attribute::ModulusBits(u64::from(bits).into()), Attribute::PublicExponent(vec![1, 0, 1])]
}

fn label(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// The reference of a private key, with what its public half says.
fn describe(
    open: &Open,
    uri: &TokenUri,
    private: ObjectHandle,
    object: &str,
) -> Result<TokenKey, Failure> {
    let refuse = |why: String| {
        Failure::Final(Error::Token(format!("key \"{object}\" in {} {why}", uri.token_name())))
    };
    let mut id = Vec::new();
    let mut kind = None;
    for attribute in
        open.session.get_attributes(private, &[AttributeType::Id, AttributeType::KeyType])?
    {
        match attribute {
            Attribute::Id(found) => id = found,
            Attribute::KeyType(found) => kind = Some(found),
            _ => {}
        }
    }
    if id.is_empty() {
        return Err(refuse("has no id (CKA_ID), by which it is found: give it one".to_owned()));
    }
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Id(id.clone())];
    let public = open.session.find_objects(&template)?.into_iter().next();
    let rsa = kind == Some(KeyType::RSA);
    let from = match public {
        Some(public) => public,
        // An RSA private key knows its public half.
        None if rsa => private,
        None => {
            return Err(refuse(
                "has no public key object of the same id beside it: import its public key"
                    .to_owned(),
            ));
        }
    };
    let wanted: &[AttributeType] = match rsa {
        true => &[AttributeType::Modulus, AttributeType::PublicExponent],
        false => &[AttributeType::EcParams, AttributeType::EcPoint],
    };
    let values: Vec<Vec<u8>> = open
        .session
        .get_attributes(from, wanted)?
        .into_iter()
        .filter_map(|attribute| match attribute {
            Attribute::Modulus(value)
            | Attribute::PublicExponent(value)
            | Attribute::EcParams(value)
            | Attribute::EcPoint(value) => Some(value),
            _ => None,
        })
        .collect();
    let [first, second] = values.as_slice() else {
        return Err(refuse("does not show its public key".to_owned()));
    };
    let (algorithm, raw) = if rsa {
        if first.len() * 8 < MIN_RSA_BITS {
            return Err(refuse(format!(
                "is RSA of {} bits: a CA needs at least {MIN_RSA_BITS}",
                first.len() * 8
            )));
        }
        (KeyAlgorithm::Rsa, sequence(first, second)?)
    } else {
        let algorithm = match first.as_slice() {
            P256 => KeyAlgorithm::EcdsaP256,
            P384 => KeyAlgorithm::EcdsaP384,
            ED25519 | EDWARDS25519 => KeyAlgorithm::Ed25519,
            _ => {
                return Err(refuse(
                    "is on a curve that is not supported: use P-256, P-384 or Ed25519".to_owned(),
                ));
            }
        };
        // Some modules wrap the point in an OCTET STRING, as they should, and some do not.
        let point = OctetStringRef::from_der(second).map_or(second.as_slice(), |p| p.as_bytes());
        (algorithm, point.to_vec())
    };
    let public_key = RawKey { algorithm: algorithm.rcgen(), raw: &raw };
    Ok(TokenKey {
        token: uri.token_name(),
        object: object.to_owned(),
        id,
        algorithm,
        public_key: rcgen::PublicKeyData::subject_public_key_info(&public_key),
    })
}

/// `r ‖ s` as the sequence that certificates have (RFC 3279 2.2.3).
fn ecdsa_der(fixed: &[u8]) -> Result<Vec<u8>, Error> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    sequence(r, s)
}

fn sequence(first: &[u8], second: &[u8]) -> Result<Vec<u8>, Error> {
    let encode = || -> der::Result<Vec<u8>> {
        let mut content = UintRef::new(first)?.to_der()?;
        content.extend(UintRef::new(second)?.to_der()?);
        AnyRef::new(Tag::Sequence, &content)?.to_der()
    };
    encode().map_err(|_| Error::Crypto("the token's answer cannot be encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecdsa_signatures_become_minimal_integers() {
        let mut fixed = vec![0; 32];
        fixed.push(0x80);
        fixed.extend([0; 30]);
        fixed.push(1);
        // r = 0, s has its highest bit set: one more octet.
        let der = ecdsa_der(&fixed).unwrap();
        assert_eq!(&der[..7], [0x30, 0x26, 2, 1, 0, 2, 0x21]);
        assert_eq!(&der[7..9], [0, 0x80]);
    }
}
