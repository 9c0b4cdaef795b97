//! From shapes to bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::LazyLock;

use base64::Engine as _;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, register_font};

use super::{Align, Colour, Format, Image, Scene, Shape};

/// The name by which plotters finds the font, and which SVG readers know.
const FONT: &str = "sans-serif";

static FONT_IS_THERE: LazyLock<bool> =
    LazyLock::new(|| register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok());

impl Scene {
    /// The picture as a file of this format.
    pub fn encode(&self, format: Format) -> Vec<u8> {
        assert!(*FONT_IS_THERE, "the font is built in");
        match format {
            Format::Svg => self.svg().into_bytes(),
            Format::Png => self.png(),
        }
    }

    fn png(&self) -> Vec<u8> {
        let (width, height) = (self.width as usize, self.height as usize);
        let mut pixels = vec![0xff; width * height * 3];
        for image in &self.images {
            image.copy_to(&mut pixels, width);
        }
        let root =
            BitMapBackend::with_buffer(&mut pixels, (self.width, self.height)).into_drawing_area();
        self.draw(&root);
        drop(root);
        png(self.width, self.height, &pixels)
    }

    fn svg(&self) -> String {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (self.width, self.height)).into_drawing_area();
        self.draw(&root);
        drop(root);
        // The images come after the opening tag, below everything else.
        let tag = svg.find("<svg").expect("it is an SVG");
        let at = tag + svg[tag..].find('>').expect("the tag ends") + 1;
        let mut below = format!(
            "\n<rect x=\"0\" y=\"0\" width=\"{}\" height=\"{}\" fill=\"#FFFFFF\" stroke=\"none\"/>",
            self.width, self.height
        );
        for image in &self.images {
            below += &image.svg();
        }
        svg.insert_str(at, &below);
        svg
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, plotters::coord::Shift>) {
        for shape in &self.shapes {
            let drawn = match shape {
                Shape::Rect {
                    corners,
                    colour,
                    filled,
                } => area.draw(&Rectangle::new(*corners, style(colour, 1, *filled))),
                Shape::Line {
                    points,
                    colour,
                    width,
                } => area.draw(&PathElement::new(
                    points.clone(),
                    style(colour, *width, false),
                )),
                Shape::Circle {
                    centre,
                    radius,
                    colour,
                    filled,
                } => area.draw(&Circle::new(
                    *centre,
                    *radius as i32,
                    style(colour, 2, *filled),
                )),
                Shape::Text {
                    at,
                    text,
                    size,
                    colour,
                    align,
                    upwards,
                } => {
                    let horizontal = match align {
                        Align::Start => HPos::Left,
                        Align::Middle => HPos::Center,
                        Align::End => HPos::Right,
                    };
                    let mut font = (FONT, *size).into_font();
                    if *upwards {
                        font = font.transform(FontTransform::Rotate270);
                    }
                    let style = font
                        .color(&rgba(colour))
                        .pos(Pos::new(horizontal, VPos::Center));
                    area.draw(&Text::new(text.as_str(), *at, style))
                }
            };
            drawn.expect("drawing to memory with a built-in font does not fail");
        }
        area.present().expect("memory is there");
    }
}

fn rgba(colour: &Colour) -> RGBAColor {
    let [r, g, b] = colour.rgb;
    RGBColor(r, g, b).mix(colour.alpha)
}

fn style(colour: &Colour, width: u32, filled: bool) -> ShapeStyle {
    ShapeStyle {
        color: rgba(colour),
        filled,
        stroke_width: width,
    }
}

/// A PNG of these RGB pixels: with a palette where 256 colours are enough,
/// which takes half the bytes for a matrix full of noise.
fn png(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let data = match indexed(pixels) {
        Some((palette, indices)) => {
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_palette(palette);
            // Neighbouring indices are not neighbouring colours.
            encoder.set_filter(png::Filter::NoFilter);
            Cow::Owned(indices)
        }
        None => {
            encoder.set_color(png::ColorType::Rgb);
            Cow::Borrowed(pixels)
        }
    };
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&data))
        .expect("writing to memory does not fail, and the sizes agree");
    file
}

/// The colours of RGB pixels, and each pixel's number among them.
fn indexed(pixels: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut numbers: HashMap<&[u8], u8> = HashMap::new();
    let mut palette = Vec::new();
    let mut indices = Vec::with_capacity(pixels.len() / 3);
    for pixel in pixels.chunks_exact(3) {
        let next = u8::try_from(numbers.len()).ok();
        let index = match numbers.entry(pixel) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                palette.extend(pixel);
                *entry.insert(next?)
            }
        };
        indices.push(index);
    }
    Some((palette, indices))
}

impl Image {
    /// Copies the block into the picture's `pixels`.
    fn copy_to(&self, pixels: &mut [u8], width: usize) {
        let (zoom, columns) = (self.zoom as usize, self.width as usize);
        for y in 0..self.height as usize * zoom {
            let row = &self.pixels[y / zoom * columns..][..columns];
            let start = (self.at.1 as usize + y) * width + self.at.0 as usize;
            let line = pixels[start * 3..].chunks_exact_mut(3);
            let repeated = row
                .iter()
                .flat_map(|colour| std::iter::repeat_n(colour, zoom));
            for (pixel, colour) in line.zip(repeated) {
                pixel.copy_from_slice(&colour.rgb);
            }
        }
    }

    fn svg(&self) -> String {
        let pixels: Vec<u8> = self.pixels.iter().flat_map(|colour| colour.rgb).collect();
        let data = png(self.width, self.height, &pixels);
        format!(
            "\n<image x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" \
             preserveAspectRatio=\"none\" style=\"image-rendering:pixelated\" \
             href=\"data:image/png;base64,{}\"/>",
            self.at.0,
            self.at.1,
            self.width * self.zoom,
            self.height * self.zoom,
            base64::engine::general_purpose::STANDARD.encode(data)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes to RGB.
    fn decoded(file: &[u8]) -> Vec<u8> {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    }

    #[test]
    fn pixels_survive_with_and_without_a_palette() {
        for colours in [1u32, 2, 255, 256, 257, 700] {
            let pixels: Vec<u8> = (0..1024)
                .flat_map(|i| {
                    let colour = i * 11 % colours;
                    [colour as u8, (colour >> 8) as u8, 9]
                })
                .collect();
            assert_eq!(indexed(&pixels).is_some(), colours <= 256, "{colours}");
            assert!(decoded(&png(32, 32, &pixels)) == pixels, "{colours}");
        }
    }
}
