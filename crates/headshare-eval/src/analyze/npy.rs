//! Arrays for NumPy: the NPY format, version 1.0, little-endian `f32` in C
//! order.

/// An array of this shape as an `.npy` file. `values` has as many numbers as
/// the shape says.
pub fn encode(shape: &[usize], values: impl ExactSizeIterator<Item = f32>) -> Vec<u8> {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    // A tuple of one ends with a comma.
    let comma = if dims.len() == 1 { "," } else { "" };
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}",
        dims.join(", ")
    );
    // Magic, version, length and header are a multiple of 64 bytes, padded with
    // blanks, the last of it a line end.
    const BEFORE: usize = 10;
    let len = (BEFORE + header.len() + 1).next_multiple_of(64) - BEFORE;
    header += &" ".repeat(len - 1 - header.len());
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(values.flat_map(f32::to_le_bytes));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let file = encode(&[2, 3], (0..6u8).map(f32::from));
        assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
        let len = usize::from(u16::from_le_bytes([file[8], file[9]]));
        assert_eq!((10 + len) % 64, 0);
        let header = std::str::from_utf8(&file[10..10 + len]).unwrap();
        assert!(header.ends_with(" \n"));
        assert_eq!(
            header.trim_end(),
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
        );
        let numbers: Vec<f32> = file[10 + len..]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(numbers, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn shapes_of_one_dimension_are_tuples() {
        let file = encode(&[1], [1.0].into_iter());
        assert!(String::from_utf8_lossy(&file).contains("'shape': (1,), }"));
    }
}
