//! Bounded reading and writing of little-endian fields.

use crate::LayoutError;

/// The unread rest of some input.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(record: &'static str, bytes: &'a [u8]) -> Self {
        Self { record, rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], LayoutError> {
        let short = LayoutError::Short { record: self.record, missing: len.saturating_sub(self.rest.len()) };
        let taken = self.rest.get(..len).ok_or(short)?;
        self.rest = self.rest.get(len..).ok_or(short)?;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], LayoutError> {
        let mut all = [0; N];
        all.copy_from_slice(self.bytes(N)?);
        Ok(all)
    }

    pub(crate) fn invalid(&self, field: &'static str, value: u64) -> LayoutError {
        LayoutError::Invalid { record: self.record, field, value }
    }
}

/// The unwritten rest of some output.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    record: &'static str,
    rest: &'a mut [u8],
}

impl<'a> Output<'a> {
    pub(crate) fn new(record: &'static str, bytes: &'a mut [u8]) -> Self {
        Self { record, rest: bytes }
    }

    pub(crate) fn bytes(&mut self, from: &[u8]) -> Result<(), LayoutError> {
        let missing = from.len().saturating_sub(self.rest.len());
        if missing > 0 {
            return Err(LayoutError::NoRoom { record: self.record, missing });
        }
        let rest = core::mem::take(&mut self.rest);
        let (here, after) = rest.split_at_mut(from.len());
        here.copy_from_slice(from);
        self.rest = after;
        Ok(())
    }
}

/// A field of fixed size.
pub(crate) trait Field: Sized {
    const SIZE: usize;
    fn put(&self, out: &mut Output<'_>) -> Result<(), LayoutError>;
    fn take(input: &mut Input<'_>, field: &'static str) -> Result<Self, LayoutError>;
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Field for $number {
            const SIZE: usize = size_of::<$number>();
            fn put(&self, out: &mut Output<'_>) -> Result<(), LayoutError> {
                out.bytes(&self.to_le_bytes())
            }
            fn take(input: &mut Input<'_>, _: &'static str) -> Result<Self, LayoutError> {
                Ok(Self::from_le_bytes(input.array()?))
            }
        }
    )*};
}
number!(u16, u32, u64, i32);

impl<const N: usize> Field for [u8; N] {
    const SIZE: usize = N;
    fn put(&self, out: &mut Output<'_>) -> Result<(), LayoutError> {
        out.bytes(self)
    }
    fn take(input: &mut Input<'_>, _: &'static str) -> Result<Self, LayoutError> {
        input.array()
    }
}

impl<const N: usize> Field for [u64; N] {
    const SIZE: usize = N.saturating_mul(8);
    fn put(&self, out: &mut Output<'_>) -> Result<(), LayoutError> {
        self.iter().try_for_each(|word| word.put(out))
    }
    fn take(input: &mut Input<'_>, field: &'static str) -> Result<Self, LayoutError> {
        let mut all = [0; N];
        for word in &mut all {
            *word = u64::take(input, field)?;
        }
        Ok(all)
    }
}

/// Declares an enum that is stored as a number, and its encoding.
macro_rules! stored_enum {
    ($(#[$meta:meta])* $name:ident: $number:ident { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr($number)]
        pub enum $name {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $name {
            /// The stored number. Never reused for another meaning.
            pub const fn number(self) -> $number {
                match self {
                    $(Self::$variant => $value,)*
                }
            }

            /// The variant that a stored number means.
            pub const fn from_number(number: $number) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl $crate::cursor::Field for $name {
            const SIZE: usize = size_of::<$number>();
            fn put(&self, out: &mut $crate::cursor::Output<'_>) -> Result<(), $crate::LayoutError> {
                $crate::cursor::Field::put(&self.number(), out)
            }
            fn take(
                input: &mut $crate::cursor::Input<'_>,
                field: &'static str,
            ) -> Result<Self, $crate::LayoutError> {
                let number = <$number as $crate::cursor::Field>::take(input, field)?;
                Self::from_number(number).ok_or_else(|| input.invalid(field, u64::from(number)))
            }
        }
    };
}
pub(crate) use stored_enum;

/// Declares a struct of fixed layout: its fields are stored in order. `check` sees each decoded value and names the field
/// that cannot be.
macro_rules! fixed_layout {
    (
        $(#[$meta:meta])*
        $name:ident, tag $tag:expr, version $version:literal, check $check:expr, {
            $($(#[$doc:meta])* $field:ident: $kind:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name {
            $($(#[$doc])* pub $field: $kind,)*
        }

        impl $crate::Layout for $name {
            const TAG: u16 = $tag;
            const VERSION: u16 = $version;
            const NAME: &'static str = stringify!($name);
            const SIZE: usize = 0_usize$(.saturating_add(<$kind as $crate::cursor::Field>::SIZE))*;

            fn encode(&self, out: &mut [u8]) -> Result<usize, $crate::LayoutError> {
                let mut out = $crate::cursor::Output::new(Self::NAME, out);
                $($crate::cursor::Field::put(&self.$field, &mut out)?;)*
                Ok(Self::SIZE)
            }

            fn decode(bytes: &[u8]) -> Result<(Self, usize), $crate::LayoutError> {
                let mut input = $crate::cursor::Input::new(Self::NAME, bytes);
                $(let $field = <$kind as $crate::cursor::Field>::take(&mut input, stringify!($field))?;)*
                let record = Self { $($field,)* };
                let check: fn(&Self) -> Result<(), (&'static str, u64)> = $check;
                check(&record).map_err(|(field, value)| input.invalid(field, value))?;
                Ok((record, Self::SIZE))
            }
        }
    };
}
pub(crate) use fixed_layout;
