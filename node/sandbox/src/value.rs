//! Component-model value encoding: how parameters and results of interfaces that only guests know go over the wire.
//!
//! The bytes are those of the component model's binary format for values (`Binary.md`, value definitions): integers in
//! LEB128 (bytes as they are), floats in little-endian, texts and lists with their length before them, records and tuples
//! field after field, variants and enums by the number of their case, options and results by one byte. Nothing names a
//! field or a type: both sides know the interface.
//!
//! What is decoded comes from a peer and may be anything.

use wasmtime::component::{Type, Val};

/// How deep values may be nested.
const DEPTH_MAX: u32 = 64;

/// What the values of one message may take in memory, in bytes. A list of bytes takes 40 times its size, for each of them
/// is a `Val`, and a byte of flags as much as the names of eight.
const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why bytes are no values, or values no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// They end in the middle of a value.
    #[error("the values are cut short")]
    CutShort,
    /// There are more bytes than values.
    #[error("{0} bytes are left over after the values")]
    LeftOver(usize),
    /// A byte is none that can stand there.
    #[error("no {0} is written like that")]
    Malformed(&'static str),
    /// A bound is crossed.
    #[error("the values take more than {MEMORY_BYTES_MAX} bytes of memory, or are nested deeper than {DEPTH_MAX}")]
    TooMuch,
    /// The value is of another type.
    #[error("the value is no {0}")]
    Mismatch(&'static str),
}

/// What keeps a type from being sent, in words; none if it is plain.
pub(crate) fn not_plain(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Own(_) | Type::Borrow(_) => Some("a resource"),
        Type::Future(_) => Some("a future"),
        Type::Stream(_) => Some("a stream"),
        Type::ErrorContext => Some("an error context"),
        Type::Map(_) => Some("a map"),
        Type::FixedLengthList(_) => Some("a list of fixed length"),
        Type::List(list) => not_plain(&list.ty()),
        Type::Option(option) => not_plain(&option.ty()),
        Type::Record(record) => record.fields().find_map(|field| not_plain(&field.ty)),
        Type::Tuple(tuple) => tuple.types().find_map(|ty| not_plain(&ty)),
        Type::Variant(variant) => variant.cases().filter_map(|case| case.ty).find_map(|ty| not_plain(&ty)),
        Type::Result(result) => [result.ok(), result.err()].iter().flatten().find_map(not_plain),
        _ => None,
    }
}

/// Writes values of these types, one after the other.
pub(crate) fn encode(types: impl Iterator<Item = Type>, values: &[Val]) -> Result<Vec<u8>, ValueError> {
    let mut out = Vec::new();
    for (ty, value) in types.zip(values) {
        write(&mut out, &ty, value)?;
    }
    Ok(out)
}

/// Reads values of these types, and nothing after them.
pub(crate) fn decode(types: impl Iterator<Item = Type>, bytes: &[u8]) -> Result<Vec<Val>, ValueError> {
    let mut reader = Reader { bytes, memory_bytes: MEMORY_BYTES_MAX };
    let values = types.map(|ty| reader.value(&ty, 0)).collect::<Result<_, _>>()?;
    if reader.bytes.is_empty() { Ok(values) } else { Err(ValueError::LeftOver(reader.bytes.len())) }
}

fn write(out: &mut Vec<u8>, ty: &Type, value: &Val) -> Result<(), ValueError> {
    match (ty, value) {
        (Type::Bool, Val::Bool(v)) => out.push((*v).into()),
        (Type::U8, Val::U8(v)) => out.push(*v),
        (Type::S8, Val::S8(v)) => out.extend(v.to_le_bytes()),
        (Type::U16, Val::U16(v)) => unsigned(out, (*v).into()),
        (Type::U32, Val::U32(v)) => unsigned(out, (*v).into()),
        (Type::U64, Val::U64(v)) => unsigned(out, *v),
        (Type::S16, Val::S16(v)) => signed(out, (*v).into()),
        (Type::S32, Val::S32(v)) => signed(out, (*v).into()),
        (Type::S64, Val::S64(v)) => signed(out, *v),
        (Type::Float32, Val::Float32(v)) => out.extend(v.to_le_bytes()),
        (Type::Float64, Val::Float64(v)) => out.extend(v.to_le_bytes()),
        (Type::Char, Val::Char(v)) => out.extend(v.encode_utf8(&mut [0; 4]).as_bytes()),
        (Type::String, Val::String(v)) => {
            unsigned(out, v.len() as u64);
            out.extend(v.as_bytes());
        }
        (Type::List(ty), Val::List(items)) => {
            unsigned(out, items.len() as u64);
            items.iter().try_for_each(|item| write(out, &ty.ty(), item))?;
        }
        _ => write_compound(out, ty, value)?,
    }
    Ok(())
}

fn write_compound(out: &mut Vec<u8>, ty: &Type, value: &Val) -> Result<(), ValueError> {
    match (ty, value) {
        (Type::Record(ty), Val::Record(fields)) => {
            ty.fields().zip(fields).try_for_each(|(field, (_, value))| write(out, &field.ty, value))
        }
        (Type::Tuple(ty), Val::Tuple(values)) => {
            ty.types().zip(values).try_for_each(|(ty, value)| write(out, &ty, value))
        }
        (Type::Variant(ty), Val::Variant(name, payload)) => {
            let case = ty.cases().enumerate().find(|(_, case)| case.name == name);
            let (number, case) = case.ok_or(ValueError::Mismatch("case of the variant"))?;
            unsigned(out, number as u64);
            write_payload(out, case.ty.as_ref(), payload.as_deref())
        }
        (Type::Enum(ty), Val::Enum(name)) => {
            let number = ty.names().position(|case| case == name).ok_or(ValueError::Mismatch("case of the enum"))?;
            unsigned(out, number as u64);
            Ok(())
        }
        (Type::Option(ty), Val::Option(value)) => {
            out.push(value.is_some().into());
            write_payload(out, value.is_some().then(|| ty.ty()).as_ref(), value.as_deref())
        }
        (Type::Result(ty), Val::Result(result)) => {
            out.push(result.is_err().into());
            match result {
                Ok(value) => write_payload(out, ty.ok().as_ref(), value.as_deref()),
                Err(value) => write_payload(out, ty.err().as_ref(), value.as_deref()),
            }
        }
        (Type::Flags(ty), Val::Flags(set)) => {
            let mut bytes = vec![0_u8; ty.names().len().div_ceil(8)];
            for (bit, _) in ty.names().enumerate().filter(|(_, name)| set.iter().any(|set| set == name)) {
                bytes[bit / 8] |= 1 << (bit % 8);
            }
            out.extend(bytes);
            Ok(())
        }
        _ => Err(ValueError::Mismatch("value of its type")),
    }
}

fn write_payload(out: &mut Vec<u8>, ty: Option<&Type>, value: Option<&Val>) -> Result<(), ValueError> {
    match (ty, value) {
        (Some(ty), Some(value)) => write(out, ty, value),
        (None, None) => Ok(()),
        _ => Err(ValueError::Mismatch("payload of its case")),
    }
}

fn unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn signed(out: &mut Vec<u8>, mut value: i64) {
    while !(-0x40..0x40).contains(&value) {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8 & 0x7f);
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// What the values still to come may take.
    memory_bytes: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, ty: &Type, depth: u32) -> Result<Val, ValueError> {
        self.charge(size_of::<Val>())?;
        if depth > DEPTH_MAX {
            return Err(ValueError::TooMuch);
        }
        Ok(match ty {
            Type::Bool => Val::Bool(self.flag()?),
            Type::U8 => Val::U8(self.byte()?),
            Type::S8 => Val::S8(i8::from_le_bytes([self.byte()?])),
            Type::U16 => Val::U16(self.unsigned(16)? as u16),
            Type::U32 => Val::U32(self.unsigned(32)? as u32),
            Type::U64 => Val::U64(self.unsigned(64)?),
            Type::S16 => Val::S16(self.signed(16)? as i16),
            Type::S32 => Val::S32(self.signed(32)? as i32),
            Type::S64 => Val::S64(self.signed(64)?),
            Type::Float32 => Val::Float32(f32::from_le_bytes(self.array()?)),
            Type::Float64 => Val::Float64(f64::from_le_bytes(self.array()?)),
            Type::Char => Val::Char(self.char()?),
            Type::String => {
                let length = self.length()?;
                self.charge(length)?;
                let text = std::str::from_utf8(self.take(length)?).map_err(|_| ValueError::Malformed("string"))?;
                Val::String(text.into())
            }
            Type::List(ty) => {
                let (length, ty) = (self.length()?, ty.ty());
                Val::List((0..length).map(|_| self.value(&ty, depth + 1)).collect::<Result<_, _>>()?)
            }
            _ => self.compound(ty, depth + 1)?,
        })
    }

    fn compound(&mut self, ty: &Type, depth: u32) -> Result<Val, ValueError> {
        Ok(match ty {
            Type::Record(ty) => {
                let field = |field: wasmtime::component::types::Field<'_>| {
                    Ok((self.name(field.name)?, self.value(&field.ty, depth)?))
                };
                Val::Record(ty.fields().map(field).collect::<Result<_, _>>()?)
            }
            Type::Tuple(ty) => Val::Tuple(ty.types().map(|ty| self.value(&ty, depth)).collect::<Result<_, _>>()?),
            Type::Variant(ty) => {
                let number = self.unsigned(32)? as usize;
                let case = ty.cases().nth(number).ok_or(ValueError::Malformed("variant"))?;
                Val::Variant(self.name(case.name)?, self.payload(case.ty, depth)?)
            }
            Type::Enum(ty) => {
                let number = self.unsigned(32)? as usize;
                Val::Enum(self.name(ty.names().nth(number).ok_or(ValueError::Malformed("enum"))?)?)
            }
            Type::Option(ty) => {
                let some = self.flag()?;
                Val::Option(self.payload(some.then(|| ty.ty()), depth)?)
            }
            Type::Result(ty) => Val::Result(match self.flag()? {
                false => Ok(self.payload(ty.ok(), depth)?),
                true => Err(self.payload(ty.err(), depth)?),
            }),
            Type::Flags(ty) => {
                let bytes = self.take(ty.names().len().div_ceil(8))?;
                let set = ty.names().enumerate().filter(|(bit, _)| bytes[bit / 8] & (1 << (bit % 8)) != 0);
                Val::Flags(set.map(|(_, name)| self.name(name)).collect::<Result<_, _>>()?)
            }
            _ => return Err(ValueError::Mismatch("plain value")),
        })
    }

    fn payload(&mut self, ty: Option<Type>, depth: u32) -> Result<Option<Box<Val>>, ValueError> {
        ty.map(|ty| self.value(&ty, depth).map(Box::new)).transpose()
    }

    /// The name of a field, case or flag, which each value has anew.
    fn name(&mut self, name: &str) -> Result<String, ValueError> {
        self.charge(size_of::<String>() + name.len())?;
        Ok(name.into())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), ValueError> {
        self.memory_bytes = self.memory_bytes.checked_sub(bytes).ok_or(ValueError::TooMuch)?;
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ValueError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(ValueError::CutShort)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        Ok(self.take(N)?.try_into().expect("as long as was asked for"))
    }

    fn byte(&mut self) -> Result<u8, ValueError> {
        Ok(self.array::<1>()?[0])
    }

    fn flag(&mut self) -> Result<bool, ValueError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ValueError::Malformed("bool, option or result")),
        }
    }

    fn char(&mut self) -> Result<char, ValueError> {
        let length = match self.bytes.first().ok_or(ValueError::CutShort)? {
            0..0x80 => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
        };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| ValueError::Malformed("char"))?;
        text.chars().next().ok_or(ValueError::Malformed("char"))
    }

    /// The length of a text or list. Nothing is reserved for it, so a false one costs nothing.
    fn length(&mut self) -> Result<usize, ValueError> {
        Ok(self.unsigned(32)? as usize)
    }

    fn unsigned(&mut self, bits: u32) -> Result<u64, ValueError> {
        let mut value = 0_u64;
        for shift in (0..bits).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift + 7 > bits && part >> (bits - shift) != 0 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ValueError::Malformed("integer"))
    }

    fn signed(&mut self, bits: u32) -> Result<i64, ValueError> {
        let mut value = 0_i64;
        for shift in (0..bits).step_by(7) {
            let byte = self.byte()?;
            value |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let unused = 64_u32.saturating_sub(shift + 7);
                let value = value << unused >> unused;
                let fits = bits == 64 || (value >> (bits - 1) == 0 || value >> (bits - 1) == -1);
                return if fits { Ok(value) } else { Err(ValueError::Malformed("integer")) };
            }
        }
        Err(ValueError::Malformed("integer"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use wasmtime::Engine;
    use wasmtime::component::Component;
    use wasmtime::component::types::ComponentItem;

    use super::*;

    /// The type of a function's one parameter, in the component text format.
    fn ty(text: &str, uses: &str) -> Type {
        let wat = format!(r#"(component (import "i" (instance {text} (export "f" (func (param "p" {uses}))))))"#);
        let engine = Engine::default();
        let component = Component::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
        let component_type = component.component_type();
        let ComponentItem::ComponentInstance(i) = component_type.get_import(&engine, "i").unwrap().ty else { panic!() };
        let ComponentItem::ComponentFunc(f) = i.get_export(&engine, "f").unwrap().ty else { panic!() };
        f.params().next().unwrap().1
    }

    #[track_caller]
    fn check(ty: &Type, value: Val, bytes: &[u8]) {
        let encoded = encode([ty.clone()].into_iter(), std::slice::from_ref(&value)).unwrap();
        assert_eq!(encoded, bytes);
        assert_eq!(decode([ty.clone()].into_iter(), bytes).unwrap(), [value]);
        for cut in 0..bytes.len() {
            assert!(decode([ty.clone()].into_iter(), &bytes[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(decode([ty.clone()].into_iter(), &longer), Err(ValueError::LeftOver(1)));
    }

    #[test]
    fn numbers_and_texts() {
        check(&Type::Bool, Val::Bool(true), &[1]);
        check(&Type::S8, Val::S8(-1), &[0xff]);
        check(&Type::U16, Val::U16(u16::MAX), &[0xff, 0xff, 0x03]);
        check(&Type::U32, Val::U32(300), &[0xac, 0x02]);
        check(&Type::U64, Val::U64(u64::MAX), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        check(&Type::S16, Val::S16(i16::MIN), &[0x80, 0x80, 0x7e]);
        check(&Type::S32, Val::S32(-64), &[0x40]);
        check(&Type::S32, Val::S32(64), &[0xc0, 0x00]);
        check(&Type::S64, Val::S64(i64::MIN), &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f]);
        check(&Type::Float32, Val::Float32(1.0), &[0, 0, 0x80, 0x3f]);
        check(&Type::Char, Val::Char('€'), "€".as_bytes());
        check(&Type::String, Val::String("hé".into()), &[3, b'h', 0xc3, 0xa9]);
    }

    #[test]
    fn compounds() {
        let list = ty(r#"(type $t (list u8))"#, "$t");
        check(&list, Val::List(vec![Val::U8(1), Val::U8(200)]), &[2, 1, 200]);
        let option = ty("(type $t (option string))", "$t");
        check(&option, Val::Option(None), &[0]);
        check(&option, Val::Option(Some(Box::new(Val::String("x".into())))), &[1, 1, b'x']);
        let result = ty("(type $t (result u8 (error string)))", "$t");
        check(&result, Val::Result(Ok(Some(Box::new(Val::U8(7))))), &[0, 7]);
        let tuple = ty("(type $t (tuple u8 bool))", "$t");
        check(&tuple, Val::Tuple(vec![Val::U8(1), Val::Bool(false)]), &[1, 0]);
        let record = ty(r#"(type $r (record (field "a" u8) (field "b" string))) (export "r" (type $t (eq $r)))"#, "$t");
        let fields = vec![("a".into(), Val::U8(1)), ("b".into(), Val::String(String::new()))];
        check(&record, Val::Record(fields), &[1, 0]);
        let variant = ty(r#"(type $v (variant (case "a") (case "b" u8))) (export "v" (type $t (eq $v)))"#, "$t");
        check(&variant, Val::Variant("b".into(), Some(Box::new(Val::U8(9)))), &[1, 9]);
        let cases = ty(r#"(type $e (enum "a" "b")) (export "e" (type $t (eq $e)))"#, "$t");
        check(&cases, Val::Enum("b".into()), &[1]);
        let flags = ty(r#"(type $f (flags "a" "b" "c")) (export "f2" (type $t (eq $f)))"#, "$t");
        check(&flags, Val::Flags(vec!["a".into(), "c".into()]), &[5]);
    }

    #[test]
    fn bytes_of_a_peer_are_refused_and_not_trusted() {
        let read = |ty: Type, bytes: &[u8]| decode([ty].into_iter(), bytes).unwrap_err();
        assert_eq!(read(Type::Bool, &[2]), ValueError::Malformed("bool, option or result"));
        assert_eq!(read(Type::U16, &[0xff, 0xff, 0x07]), ValueError::Malformed("integer"));
        assert_eq!(read(Type::U32, &[0x80; 6]), ValueError::Malformed("integer"));
        assert_eq!(read(Type::S16, &[0xff, 0xff, 0x03]), ValueError::Malformed("integer"));
        assert_eq!(read(Type::String, &[1, 0xff]), ValueError::Malformed("string"));
        assert_eq!(read(Type::Char, &[0xff, 0, 0, 0]), ValueError::Malformed("char"));
        let list = ty("(type $t (list u8))", "$t");
        assert_eq!(read(list.clone(), &[0xff, 0xff, 0xff, 0xff, 0x0f]), ValueError::CutShort, "4 GiB are not reserved");
        let much = [&[0x80, 0x89, 0x7a][..], &vec![0; 2_000_000]].concat();
        assert_eq!(read(list.clone(), &much), ValueError::TooMuch, "two million values");
        let long = |n| format!("{}{n}", "x".repeat(1_000));
        let names: String = (0..8).map(|n| format!("\"{}\" ", long(n))).collect();
        let flags =
            ty(&format!(r#"(type $f (flags {names})) (export "f2" (type $g (eq $f))) (type $t (list $g))"#), "$t");
        let much = [&[0x90, 0x4e][..], &vec![0xff; 10_000]].concat();
        assert_eq!(read(flags, &much), ValueError::TooMuch, "ten thousand bytes, with 80 MB of names");
        assert_eq!(not_plain(&list), None);
    }

    /// One type of each kind, and some within others.
    static TYPES: LazyLock<Vec<Type>> = LazyLock::new(|| {
        let records =
            r#"(type $r (record (field "a" string) (field "b" (option s64)))) (export "r" (type $q (eq $r)))"#;
        let variants =
            r#"(type $v (variant (case "a") (case "b" u16) (case "c" (list char)))) (export "v" (type $t (eq $v)))"#;
        let plain = [Type::Bool, Type::S16, Type::U64, Type::Float64, Type::Char, Type::String];
        let made = [
            ty(variants, "$t"),
            ty(&format!("{records} (type $t (list $q))"), "$t"),
            ty(&format!("{variants} (type $l (list (tuple u8 $t)))"), "$l"),
            ty("(type $t (result (list u32) (error (option f32))))", "$t"),
            ty(r#"(type $f (flags "a" "b" "c" "d" "e" "f" "g" "h" "i")) (export "f2" (type $t (eq $f)))"#, "$t"),
        ];
        plain.into_iter().chain(made).collect()
    });

    proptest! {
        #[test]
        fn any_bytes_of_a_peer_are_values_or_refused(
            nth in 0..TYPES.len(),
            // Small numbers are lengths and cases more often than others.
            bytes in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..40),
        ) {
            let ty = || [TYPES[nth].clone()].into_iter();
            if let Ok(values) = decode(ty(), &bytes) {
                let written = encode(ty(), &values).unwrap();
                prop_assert!(written.len() <= bytes.len(), "there is no shorter way to write {values:?}");
                let read = decode(ty(), &written).unwrap();
                prop_assert_eq!(encode(ty(), &read).unwrap(), written);
            }
        }
    }
}
