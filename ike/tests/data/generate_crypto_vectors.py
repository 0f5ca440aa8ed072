#!/usr/bin/env python3
"""Writes crypto_vectors.rs: inputs from the RFCs, results from OpenSSL (through `cryptography`)
and from Python's own hmac and pow, so that nothing in it comes from the code under test.

Run in this directory; needs the `cryptography` package. Key pairs are fresh at each run.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

out = [
    "//! Known answers; written by generate_crypto_vectors.py.",
    "",
    "#![allow(dead_code, unreachable_pub)]",
]


def emit(name, data, doc=None):
    text = data.hex()
    if doc:
        out.append(f"/// {doc}")
    line = f'pub const {name}: &str = "{text}";'
    if len(line) <= 100:
        out.append(line)
        return
    out.append(f'pub const {name}: &str = "\\')
    chunks = [text[i : i + 92] for i in range(0, len(text), 92)]
    for chunk in chunks[:-1]:
        out.append(f"    {chunk}\\")
    out.append(f'    {chunks[-1]}";')


h = bytes.fromhex

# AES-GCM, McGrew and Viega test cases 4, 10 and 16 (the NIST submission). Nonce = salt | IV.
plain = h(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
aad = h("feedfacedeadbeeffeedfacedeadbeefabaddad2")
nonce = h("cafebabefacedbaddecaf888")
base = h("feffe9928665731c6d6a8f9467308308")
emit("GCM_PLAIN", plain)
emit("GCM_AAD", aad)
emit("GCM_SALT", nonce[:4])
emit("GCM_IV", nonce[4:])
tags = {16: "5bc94fbc3221a5db94fae95ae7121a47", 24: "2519498e80f1478f37ba55bd6d27618c",
        32: "76fc6ece0f4e1768cddf8853bb2d551b"}
for size, tag in tags.items():
    key = (base * 2)[:size]
    sealed = AESGCM(key).encrypt(nonce, plain, aad)
    assert sealed[-16:] == h(tag)
    emit(f"GCM_KEY_{size * 8}", key)
    emit(f"GCM_SEALED_{size * 8}", sealed)

# ChaCha20-Poly1305: RFC 8439 2.8.2 and RFC 7634 appendix B.
key = bytes(range(0x80, 0xA0))
text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it.")
aad = h("50515253c0c1c2c3c4c5c6c7")
sealed = ChaCha20Poly1305(key).encrypt(h("070000004041424344454647"), text, aad)
assert sealed[-16:] == h("1ae10b594f09e26a7e902ecbd0600691")
emit("CHACHA_KEY", key)
emit("CHACHA_8439_PLAIN", text)
emit("CHACHA_8439_AAD", aad)
emit("CHACHA_8439_SEALED", sealed)
aad = h("c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029")
text = h("0000000c000040010000000a00")
sealed = ChaCha20Poly1305(key).encrypt(h("a0a1a2a31011121314151617"), text, aad)
assert sealed == h("610394701f8d017f7c129248896b71bfe25236efd7cdc67066906315b2")
emit("CHACHA_7634_PLAIN", text)
emit("CHACHA_7634_AAD", aad)
emit("CHACHA_7634_SEALED", sealed)

# AES-CBC, SP 800-38A F.2.1, F.2.3, F.2.5.
plain = h(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
iv = bytes(range(16))
emit("CBC_PLAIN", plain)
emit("CBC_IV", iv)
cbc = {
    "2b7e151628aed2a6abf7158809cf4f3c": "7649abac8119b246",
    "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b": "4f021db243bc633d",
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": "f58c4c04d6e5f1ba",
}
for key, start in cbc.items():
    enc = Cipher(algorithms.AES(h(key)), modes.CBC(iv)).encryptor()
    sealed = enc.update(plain) + enc.finalize()
    assert sealed.startswith(h(start))
    emit(f"CBC_KEY_{len(key) * 4}", h(key))
    emit(f"CBC_SEALED_{len(key) * 4}", sealed)

# HMAC-SHA-2, RFC 4231 test cases 1, 2, 3, 4, 6 and 7.
cases = [
    (b"\x0b" * 20, b"Hi There"),
    (b"Jefe", b"what do ya want for nothing?"),
    (b"\xaa" * 20, b"\xdd" * 50),
    (bytes(range(1, 26)), b"\xcd" * 50),
    (b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First"),
    (b"\xaa" * 131, b"This is a test using a larger than block-size key and a larger than "
     b"block-size data. The key needs to be hashed before being used by the HMAC algorithm."),
]
assert hmac.digest(*cases[1], "sha256").hex().startswith("5bdcc146bf60754e6a042426089575c7")
out.append("/// Key, data, and HMAC with SHA2-256, 384 and 512.")
out.append("pub const HMAC: &[[&str; 5]] = &[")
for key, data in cases:
    out.append("    [")
    for value in [key, data] + [hmac.digest(key, data, a) for a in ("sha256", "sha384", "sha512")]:
        text = value.hex()
        chunks = [text[i : i + 84] for i in range(0, len(text), 84)]
        if len(chunks) == 1:
            out.append(f'        "{text}",')
        else:
            out.append('        "\\')
            out.extend(f"         {chunk}\\" for chunk in chunks[:-1])
            out.append(f'         {chunks[-1]}",')
    out.append("    ],")
out.append("];")


# Key derivation, RFC 7296 2.13 to 2.18 and its extensions, in plain Python.
def prf(algorithm, key, *parts):
    return hmac.digest(key, b"".join(parts), algorithm)


def prf_plus(algorithm, key, seed, length):
    result, block, n = b"", b"", 1
    while len(result) < length:
        block = prf(algorithm, key, block, seed, bytes([n]))
        result, n = result + block, n + 1
    return result[:length]


ni, nr = bytes(range(32)), bytes(range(0x40, 0x70))
spi_i, spi_r = h("0011223344556677"), h("8899aabbccddeeff")
shared, extra = hashlib.sha512(b"g^ir").digest(), hashlib.sha256(b"SK(1)").digest()
emit("NI", ni)
emit("NR", nr)
emit("SHARED", shared)
emit("EXTRA", extra)
a = "sha384"
emit("PRF_PLUS_200", prf_plus(a, b"key", b"seed", 200), "prf+(HMAC-SHA2-384, key, seed)")
seed = prf(a, ni + nr, shared)
emit("SKEYSEED", seed)
keys = prf_plus(a, seed, ni + nr + spi_i + spi_r, 3 * 48 + 2 * 36)
emit("IKE_KEYS_GCM", keys, "prfsha384, aes256gcm16")
sk_d, sk_pi, sk_pr = keys[:48], keys[-96:-48], keys[-48:]
seed256 = prf("sha256", ni + nr, shared)
emit("IKE_KEYS_CBC", prf_plus("sha256", seed256, ni + nr + spi_i + spi_r, 7 * 32),
     "prfsha256, aes256, sha256")
emit("SKEYSEED_REKEY", prf(a, sk_d, shared + ni + nr))
emit("SKEYSEED_REKEY_MULTI", prf(a, sk_d, shared + ni + nr + extra))
emit("SKEYSEED_INTERMEDIATE", prf(a, sk_d, extra + ni + nr))
emit("CHILD_GCM", prf_plus(a, sk_d, ni + nr, 72))
emit("CHILD_CBC_PFS", prf_plus(a, sk_d, shared + ni + nr, 128))
emit("CHILD_GCM_MULTI", prf_plus(a, sk_d, shared + ni + nr + extra, 72))
ppk = b"a post-quantum preshared key"
emit("PPK_D", prf_plus(a, ppk, sk_d, 48))
emit("PPK_PI", prf_plus(a, ppk, sk_pi, 48))
emit("PPK_PR", prf_plus(a, ppk, sk_pr, 48))
int_i = prf(a, sk_pi, prf(a, sk_pi, b"A1" + b"P1"), b"A2" + b"P2")
int_r = prf(a, sk_pr, b"B1" + b"Q1")
int_auth = int_i + int_r + (2).to_bytes(4, "big")
emit("INT_AUTH", int_auth)
octets = b"first message" + nr + prf(a, sk_pi, b"\x02\x00\x00\x00id") + int_auth
emit("AUTH_OCTETS", octets)
emit("AUTH_PSK", prf(a, prf(a, b"secret", b"Key Pad for IKEv2"), octets))

# RFC 5903 section 8 and RFC 7748 section 6.1.
ecp = {
    256: (ec.SECP256R1(), "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
          "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
          "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE"),
    384: (ec.SECP384R1(),
          "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655"
          "E35B538041E649EE3FAEF896783AB194",
          "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942"
          "E0308312916B8ED2960E4BD55A7448FC",
          "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4"
          "D603135569B9E9D09CF5D4A270F59746"),
    521: (ec.SECP521R1(),
          "0037ADE9319A89F4DABDB3EF411AACCCA5123C61ACAB57B5393DCE47608172A0"
          "95AA85A30FE1C2952C6771D937BA9777F5957B2639BAB072462F68C27A57382D4A52",
          "0145BA99A847AF43793FDD0E872E7CDFA16BE30FDC780F97BCCC3F078380201E"
          "9C677D600B343757A3BDBF2A3163E4C2F869CCA7458AA4A4EFFC311F5CB151685EB9",
          "01144C7D79AE6956BC8EDB8E7C787C4521CB086FA64407F97894E5E6B2D79B04"
          "D1427E73CA4BAA240A34786859810C06B3C715A3A8CC3151F2BEE417996D19F3DDEA"),
}
for bits, (curve, i, r, g_ir) in ecp.items():
    size = (bits + 7) // 8
    i = ec.derive_private_key(int(i, 16), curve)
    r = ec.derive_private_key(int(r, 16), curve)
    assert i.exchange(ec.ECDH(), r.public_key()) == h(g_ir)
    for name, key in (("I", i), ("R", r)):
        numbers = key.private_numbers()
        emit(f"ECP{bits}_{name}", numbers.private_value.to_bytes(size, "big"))
        emit(f"ECP{bits}_G{name}", numbers.public_numbers.x.to_bytes(size, "big")
             + numbers.public_numbers.y.to_bytes(size, "big"))
    emit(f"ECP{bits}_GIR", h(g_ir))
alice = h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
bob = h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
emit("X25519_A", alice)
emit("X25519_B", bob)
alice, bob = (x25519.X25519PrivateKey.from_private_bytes(key) for key in (alice, bob))
raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
emit("X25519_GA", alice.public_key().public_bytes(*raw))
emit("X25519_GB", bob.public_key().public_bytes(*raw))
shared = alice.exchange(bob.public_key())
assert alice.public_key().public_bytes(*raw).hex().startswith("8520f0098930a754748b7ddcb43ef75a")
assert shared == h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
emit("X25519_GAB", shared)


# RFC 3526 primes from their formula; fixed short exponents.
def pi_times_two_to(bits):
    one = 1 << (bits + 64)

    def arctan_inverse(x):
        term = total = one // x
        sign, n = -1, 3
        while term:
            term //= x * x
            total += sign * (term // n)
            sign, n = -sign, n + 2
        return total

    return 4 * (4 * arctan_inverse(5) - arctan_inverse(239)) >> 64


out.append("/// Bits; SHA2-256 of p, of 2^x, and of (2^y)^x, all mod p and padded to its length.")
out.append("pub const MODP: &[(usize, &str, &str, &str)] = &[")
x = int.from_bytes(hashlib.sha512(b"x").digest(), "big")
y = int.from_bytes(hashlib.sha512(b"y").digest(), "big")
for n, c, length in ((2048, 124476, 384), (3072, 1690314, 384), (4096, 240904, 512)):
    p = 2**n - 2 ** (n - 64) - 1 + 2**64 * (pi_times_two_to(n - 130) + c)
    e, f = x >> (512 - length), y >> (512 - length)
    out.append("    (")
    out.append(f"        {n},")
    for value in (p, pow(2, e, p), pow(2, e * f, p)):
        digest = hashlib.sha256(value.to_bytes(n // 8, "big")).hexdigest()
        out.append(f'        "{digest}",')
    out.append("    ),")
out.append("];")

# Signatures by OpenSSL over MESSAGE.
message = b"octets that an AUTH payload signs"
emit("MESSAGE", message)


def spki(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pkcs8(key):
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


algorithms_of = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}
key = rsa.generate_private_key(65537, 2048)
emit("RSA_SPKI", spki(key))
emit("RSA_PKCS8", pkcs8(key))
emit("RSA_PKCS1_SHA1", key.sign(message, padding.PKCS1v15(), hashes.SHA1()))
for bits, algorithm in algorithms_of.items():
    emit(f"RSA_PKCS1_SHA{bits}", key.sign(message, padding.PKCS1v15(), algorithm))
    pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=bits // 8)
    emit(f"RSA_PSS_SHA{bits}", key.sign(message, pss, algorithm))
pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=20)
emit("RSA_PSS_SHA256_SALT20", key.sign(message, pss, hashes.SHA256()))
key = rsa.generate_private_key(65537, 1024)
emit("RSA1024_SPKI", spki(key))
emit("RSA1024_PKCS1_SHA256", key.sign(message, padding.PKCS1v15(), hashes.SHA256()))
for bits, curve in ((256, ec.SECP256R1()), (384, ec.SECP384R1()), (521, ec.SECP521R1())):
    key = ec.generate_private_key(curve)
    emit(f"P{bits}_SPKI", spki(key))
    emit(f"P{bits}_PKCS8", pkcs8(key))
    for size, algorithm in algorithms_of.items():
        der = key.sign(message, ec.ECDSA(algorithm))
        emit(f"P{bits}_SHA{size}", der)
        if size == min(bits, 512):
            r, s = utils.decode_dss_signature(der)
            octets = (bits + 7) // 8
            emit(f"P{bits}_RAW", r.to_bytes(octets, "big") + s.to_bytes(octets, "big"))
# RFC 8032 7.1, test 2.
key = ed25519.Ed25519PrivateKey.from_private_bytes(
    h("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
emit("ED25519_SPKI", spki(key))
emit("ED25519_PKCS8", pkcs8(key))
assert key.sign(h("72")).hex().startswith("92a009a9f0d4cab8720e820b5f642540")
emit("ED25519_RFC8032", key.sign(h("72")), "Over the octet 0x72.")
emit("ED25519_SIGNATURE", key.sign(message))

with open("crypto_vectors.rs", "w") as file:
    file.write("\n".join(out) + "\n")
