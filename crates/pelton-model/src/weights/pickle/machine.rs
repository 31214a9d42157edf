//! The part of Python's pickle machine that state dicts of tensors need. Nothing is looked up and nothing is called: a global is one
//! of a short list and stands for itself, and whatever else a pickle asks for is refused by name.
//!
//! Memory is bounded by the pickle: each opcode adds at most one value, values are kept in one list and refer to each other by index
//! (so neither cycles nor deep nesting recurse), and texts are borrowed.
//!
//! Source: the opcodes' descriptions in Python's `pickletools`; what torch writes: `_utils.py`, `_tensor.py` and `serialization.py` of it.

use std::collections::HashMap;

/// Dimensions of a tensor; real weights have at most five.
const MAX_DIMS: usize = 8;
/// Letters of a text that are shown in an error.
const MAX_SHOWN: usize = 80;

/// A tensor of a state dict, before its storage was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawTensor<'a> {
    pub(super) storage: Storage<'a>,
    /// Element type, as safetensors calls it.
    pub(super) element: &'static str,
    /// In elements.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) strides: Vec<usize>,
}

/// Bytes of one or several tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Its name below `data/`.
    pub(super) key: &'a str,
    /// Its elements' type; `None`: plain bytes, whose type the tensor tells.
    element: Option<&'static str>,
}

/// Index into the machine's values.
type Id = u32;

#[derive(Debug)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Box<RawTensor<'a>>),
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    UntypedStorage,
    /// A storage of elements of that type.
    Storage(&'static str),
    DType(&'static str),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.storage", "UntypedStorage") => Self::UntypedStorage,
            ("torch", "FloatStorage") => Self::Storage("F32"),
            ("torch", "HalfStorage") => Self::Storage("F16"),
            ("torch", "BFloat16Storage") => Self::Storage("BF16"),
            ("torch", "DoubleStorage") => Self::Storage("F64"),
            ("torch", "LongStorage") => Self::Storage("I64"),
            ("torch", "IntStorage") => Self::Storage("I32"),
            ("torch", "ShortStorage") => Self::Storage("I16"),
            ("torch", "CharStorage") => Self::Storage("I8"),
            ("torch", "ByteStorage") => Self::Storage("U8"),
            ("torch", "BoolStorage") => Self::Storage("BOOL"),
            ("torch", "float8_e4m3fn") => Self::DType("F8_E4M3"),
            ("torch", "float8_e5m2") => Self::DType("F8_E5M2"),
            ("torch", "float8_e8m0fnu") => Self::DType("F8_E8M0"),
            ("torch", "uint16") => Self::DType("U16"),
            ("torch", "uint32") => Self::DType("U32"),
            ("torch", "uint64") => Self::DType("U64"),
            _ => return None,
        })
    }
}

/// The tensors of a pickled state dict, in its order; or what is wrong, in words.
pub(super) fn state_dict(pickle: &[u8]) -> Result<Vec<(&str, RawTensor<'_>)>, String> {
    let mut machine =
        Machine { rest: pickle, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let top = machine.run()?;
    let Value::Dict(items) = machine.value(top) else {
        return Err(format!("it holds {}, expected a dict of tensors", machine.kind(top)));
    };
    let mut tensors = Vec::with_capacity(items.len());
    for &(key, value) in items {
        let Value::Text(name) = *machine.value(key) else {
            return Err(format!("a key of its dict is {}, expected a text", machine.kind(key)));
        };
        match machine.value(value) {
            Value::Tensor(tensor) => tensors.push((name, RawTensor::clone(tensor))),
            _ => return Err(format!("{} is {}, expected a tensor", shown(name), machine.kind(value))),
        }
    }
    Ok(tensors)
}

struct Machine<'a> {
    /// What is not read yet.
    rest: &'a [u8],
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs to the end; the value left.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let op = self.byte()?;
            match op {
                // PROTO
                0x80 => match self.byte()? {
                    2..=5 => {}
                    version => return Err(format!("it is of pickle protocol {version}, expected 2 to 5")),
                },
                // FRAME
                0x95 => drop(self.take(8)?),
                b'.' => {
                    let top = self.pop()?;
                    return if self.stack.is_empty() {
                        Ok(top)
                    } else {
                        Err("it ends with more than one value".to_owned())
                    };
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),

                b'N' => self.push(Value::None),
                // NEWTRUE, NEWFALSE
                0x88 | 0x89 => self.push(Value::Bool),
                b'J' => {
                    let value = i64::from(i32::from_le_bytes(self.array()?));
                    self.push(Value::Int(value));
                }
                b'K' => {
                    let value = i64::from(self.byte()?);
                    self.push(Value::Int(value));
                }
                b'M' => {
                    let value = i64::from(u16::from_le_bytes(self.array()?));
                    self.push(Value::Int(value));
                }
                // LONG1
                0x8a => {
                    let value = self.long()?;
                    self.push(Value::Int(value));
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float);
                }
                // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
                b'X' => {
                    let len = u64::from(u32::from_le_bytes(self.array()?));
                    self.text(len)?;
                }
                0x8c => {
                    let len = u64::from(self.byte()?);
                    self.text(len)?;
                }
                0x8d => {
                    let len = u64::from_le_bytes(self.array()?);
                    self.text(len)?;
                }

                b']' => self.push(Value::List(Vec::new())),
                b'}' => self.push(Value::Dict(Vec::new())),
                b')' => self.push(Value::Tuple(Box::default())),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items.into()));
                }
                // TUPLE1, TUPLE2, TUPLE3
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(op - 0x84))?;
                    self.push(Value::Tuple(items.into()));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(&items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.extend_dict(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(&items)?;
                }

                b'q' => {
                    let index = u32::from(self.byte()?);
                    self.memorise(index)?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.memorise(index)?;
                }
                // MEMOIZE
                0x94 => {
                    let index = self.memo.len() as u32;
                    self.memorise(index)?;
                }
                b'h' => {
                    let index = u32::from(self.byte()?);
                    self.recall(index)?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index)?;
                }

                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                // STACK_GLOBAL
                0x93 => {
                    let pair = self.pop_many(2)?;
                    let (Value::Text(module), Value::Text(name)) = (self.value(pair[0]), self.value(pair[1])) else {
                        return Err("it names a global that is no text".to_owned());
                    };
                    self.global(module, name)?;
                }
                b'R' => {
                    let pair = self.pop_many(2)?;
                    let value = self.reduce(pair[0], pair[1])?;
                    self.push(value);
                }
                b'b' => {
                    self.pop()?;
                    let object = self.peek()?;
                    // torch hangs `_metadata` on a state dict; it says nothing of the tensors.
                    if !matches!(self.value(object), Value::Dict(_)) {
                        return Err(format!("it sets attributes of {}: only tensors are read", self.kind(object)));
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Value::Storage(storage));
                }
                _ => return Err(format!("opcode {op:#04x} belongs to no file of tensors")),
            }
        }
    }

    /// What calling `function` with `arguments` would give, for the functions in [`Global`].
    fn reduce(&self, function: Id, arguments: Id) -> Result<Value<'a>, String> {
        let Value::Global(function) = *self.value(function) else {
            return Err(format!("it calls {}: nothing is executed", self.kind(function)));
        };
        let arguments = self.tuple(arguments)?;
        match (function, arguments) {
            // As an argument of tensors; a state dict is made empty and filled.
            (Global::OrderedDict, []) => Ok(Value::Dict(Vec::new())),
            // The hooks are an empty dict, whether gradients are wished for does not matter here.
            (Global::RebuildTensor, &[storage, offset, shape, strides, _gradients, _hooks]) => {
                let Value::Storage(storage) = *self.value(storage) else {
                    return Err(format!("a tensor's storage is {}", self.kind(storage)));
                };
                let element = storage.element.ok_or("a tensor of version 2 has a storage without a type")?;
                self.tensor(storage, element, offset, shape, strides)
            }
            (Global::RebuildTensorV3, &[storage, offset, shape, strides, _gradients, _hooks, dtype]) => {
                match (self.value(storage), self.value(dtype)) {
                    (
                        &Value::Storage(storage @ Storage { element: None, .. }),
                        &Value::Global(Global::DType(element)),
                    ) => self.tensor(storage, element, offset, shape, strides),
                    _ => Err("a tensor of version 3 has no plain storage, or no known type".to_owned()),
                }
            }
            (Global::RebuildParameter, &[tensor, _gradients, _hooks]) => match self.value(tensor) {
                Value::Tensor(tensor) => Ok(Value::Tensor(tensor.clone())),
                _ => Err(format!("a parameter is made of {}", self.kind(tensor))),
            },
            (function, arguments) => Err(format!(
                "it calls {function:?} with {} arguments, which is not how tensors are made",
                arguments.len()
            )),
        }
    }

    fn tensor(
        &self,
        storage: Storage<'a>,
        element: &'static str,
        offset: Id,
        shape: Id,
        strides: Id,
    ) -> Result<Value<'a>, String> {
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor has {} dimensions and {} strides", shape.len(), strides.len()));
        }
        Ok(Value::Tensor(Box::new(RawTensor { storage, element, offset: self.size(offset)? as u64, shape, strides })))
    }

    /// `("storage", type, key, device, elements)`.
    fn storage(&self, id: Id) -> Result<Storage<'a>, String> {
        if let &[tag, class, key, _device, _elements] = self.tuple(id)?
            && let (Value::Text("storage"), &Value::Text(key)) = (self.value(tag), self.value(key))
            && let Value::Global(class) = self.value(class)
        {
            match class {
                Global::Storage(element) => return Ok(Storage { key, element: Some(element) }),
                Global::UntypedStorage => return Ok(Storage { key, element: None }),
                _ => {}
            }
        }
        Err("it refers to something outside that is no storage".to_owned())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = Global::named(module, name).ok_or_else(|| {
            format!("it asks for {}.{}: only tensors are read, nothing is executed", shown(module), shown(name))
        })?;
        self.push(Value::Global(global));
        Ok(())
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.peek()?;
        match &mut self.values[list as usize] {
            Value::List(list) => {
                list.extend_from_slice(items);
                Ok(())
            }
            _ => Err(format!("it appends to {}", self.kind(list))),
        }
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.peek()?;
        match &mut self.values[dict as usize] {
            Value::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err(format!("it sets {} items of {}", items.len(), self.kind(dict))),
        }
    }

    fn memorise(&mut self, index: u32) -> Result<(), String> {
        let top = self.peek()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = *self.memo.get(&index).ok_or_else(|| format!("it recalls {index}, which was not memorised"))?;
        self.stack.push(value);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        // A pickle is limited to far fewer bytes, and an opcode has at least one.
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    /// The value on top, above the last mark.
    fn peek(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "it takes a value that is not there".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count).filter(|&begin| begin >= floor) {
            Some(begin) => Ok(self.stack.split_off(begin)),
            None => Err("it takes values that are not there".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("it goes back to a mark that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.value(id) {
            Value::Tuple(items) => Ok(items),
            _ => Err(format!("it has {} in the place of a tuple", self.kind(id))),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        match self.tuple(id)? {
            items if items.len() > MAX_DIMS => {
                Err(format!("a tensor has {} dimensions, limit is {MAX_DIMS}", items.len()))
            }
            items => items.iter().map(|&item| self.size(item)).collect(),
        }
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match *self.value(id) {
            Value::Int(size) => usize::try_from(size).map_err(|_| format!("a size is {size}")),
            _ => Err(format!("a size is {}", self.kind(id))),
        }
    }

    /// What a value is, for messages.
    fn kind(&self, id: Id) -> String {
        match self.value(id) {
            Value::None => "None",
            Value::Bool => "a bool",
            Value::Int(_) => "an integer",
            Value::Float => "a float",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(global) => return format!("{global:?}"),
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
        .to_owned()
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(ENDS)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ENDS)?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let text = std::str::from_utf8(bytes).map_err(|error| format!("a text is not UTF-8: {error}"))?;
        self.push(Value::Text(text));
        Ok(())
    }

    /// Up to the next line feed.
    fn line(&mut self) -> Result<&'a str, String> {
        let len = self.rest.iter().position(|&byte| byte == b'\n').ok_or(ENDS)?;
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|error| format!("a name is not UTF-8: {error}"))
    }

    /// A little-endian two's complement integer of as many bytes as the first byte says.
    fn long(&mut self) -> Result<i64, String> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(format!("an integer has {len} bytes, limit is 8"));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }
}

const ENDS: &str = "it ends in the middle";

/// `text`, cut to a length that fits an error message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(pickle: &[u8]) -> String {
        state_dict(pickle).unwrap_err()
    }

    #[test]
    fn code_is_refused_by_its_name() {
        for (pickle, part) in [
            (
                &b"cos\nsystem\n(X\x02\0\0\0lstR."[..],
                "it asks for os.system: only tensors are read, nothing is executed",
            ),
            (b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.", "posix.system"),
            (b"\x80\x02c__builtin__\neval\n.", "__builtin__.eval"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
            (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "torch.nn.modules.linear.Linear"),
            (b"(S'ls'\nios\nsystem\n.", "opcode 0x53"),
            (b"(ios\nsystem\n.", "opcode 0x69"),
            (b"ccollections\nOrderedDict\n)\x81.", "opcode 0x81"),
            // Calling what an allowed name gives.
            (b"ccollections\nOrderedDict\n)R)R.", "it calls a dict"),
            (b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1 arguments"),
            (b"ctorch\nFloatStorage\n)R.", "with 0 arguments"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", "it sets attributes of RebuildTensor"),
        ] {
            let error = refusal(pickle);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn broken_pickles_are_refused() {
        for (pickle, part) in [
            (&b""[..], "ends in the middle"),
            (b"}", "ends in the middle"),
            (b".", "not there"),
            (b"(.", "not there"),
            (b"}(0.", "not there"),
            (b"t.", "a mark that is not there"),
            (b"\x80\x00}.", "protocol 0"),
            (b"}}.", "more than one value"),
            (b"N.", "it holds None"),
            (b"}K\x01Ns.", "a key of its dict is an integer"),
            (b"}X\x01\0\0\0aNs.", "a is None, expected a tensor"),
            (b"}X\x01\0\0\0a}s.", "a is a dict, expected a tensor"),
            (b"}(K\x01u.", "sets 1 items of a dict"),
            (b"NNNs.", "sets 2 items of None"),
            (b"Na.", "not there"),
            (b"NNa.", "appends to None"),
            (b"h\x05.", "recalls 5"),
            (b"j\xff\xff\xff\xff.", "recalls 4294967295"),
            (b"X\xff\xff\xff\xffa.", "ends in the middle"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "ends in the middle"),
            (b"X\x01\0\0\0\xff.", "not UTF-8"),
            (b"\x8a\x09123456789.", "9 bytes"),
            (b"K\x01Q.", "an integer in the place of a tuple"),
            (b")Q.", "no storage"),
            (b"cos\nsys", "ends in the middle"),
        ] {
            let error = refusal(pickle);
            assert!(error.contains(part), "{pickle:?}: {error}");
        }
    }

    #[test]
    fn nesting_and_cycles_neither_recurse_nor_grow() {
        let nested = [&b"("[..], &[b'('].repeat(1 << 20), b"."].concat();
        assert!(refusal(&nested).contains("not there"));
        let tuples = [&b")"[..], &[0x85].repeat(1 << 20), b"."].concat();
        assert!(refusal(&tuples).contains("it holds a tuple"));
        // A list in itself, doubled over and over.
        let doubled = [&b"]q\x00"[..], &b"(h\x00h\x00e".repeat(10_000), b"."].concat();
        assert!(refusal(&doubled).contains("it holds a list"));
    }

    #[test]
    fn integers_of_all_sizes_are_read() {
        let size = |bytes: &[u8]| {
            let mut machine =
                Machine { rest: bytes, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
            let id = machine.run().unwrap();
            machine.size(id)
        };
        assert_eq!(size(b"K\xff."), Ok(255));
        assert_eq!(size(b"M\x01\x02."), Ok(513));
        assert_eq!(size(b"J\0\0\x01\0."), Ok(65536));
        assert_eq!(size(b"\x8a\x05\0\0\0\0\x01."), Ok(1 << 32));
        assert_eq!(size(b"\x8a\x00."), Ok(0));
        assert_eq!(size(b"J\xff\xff\xff\xff."), Err("a size is -1".to_owned()));
        assert_eq!(size(b"\x8a\x01\x80."), Err("a size is -128".to_owned()));
        assert_eq!(size(b"N."), Err("a size is None".to_owned()));
    }
}
