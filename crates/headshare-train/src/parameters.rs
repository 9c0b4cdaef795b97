//! The named parameters of a model, in f32, and the sums of their gradients.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var};
use headshare_convert::convert::variant::Variant;
use headshare_convert::model::RowsRange;
use headshare_runtime::quants::dequantize_row;

use crate::codes::Codes;
use crate::error::TrainError;
use crate::ops::{Numbers, Sum, Weight, add, lock};

/// A tensor of the model.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the file.
    pub name: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
    values: Arc<Numbers>,
    /// As it is stored, where that is kept.
    codes: Option<Codes>,
}

impl Parameter {
    /// Its stored form, where that is kept ([`Parameters::keep_codes`]).
    pub fn codes(&self) -> Option<&Codes> {
        self.codes.as_ref()
    }

    /// Its numbers, for products.
    pub(crate) fn numbers(&self) -> &Numbers {
        &self.values
    }

    /// Its numbers, row after row.
    pub fn values(&self) -> &[f32] {
        self.values.as_slice()
    }

    /// Of a matrix: [rows, columns]; of a vector: [columns].
    pub fn shape(&self) -> Vec<usize> {
        match self.rows {
            1 => vec![self.columns],
            rows => vec![rows, self.columns],
        }
    }
}

/// Rows that are another tensor's rows: one parameter under two names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// The parameter whose rows are taken from elsewhere, and these.
    pub alias: (usize, Range<usize>),
    /// Where they are: never an alias itself.
    pub donor: (usize, Range<usize>),
}

/// The parameters of a model.
///
/// Rows of [ties](Tie) are there under both names and kept equal. Columns that are
/// [silent](Self::silence) are kept zero.
#[derive(Debug, Clone)]
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: BTreeMap<String, usize>,
    ties: Vec<Tie>,
    /// Columns that stay zero, by parameter.
    silent: BTreeMap<usize, Vec<Range<usize>>>,
}

impl Parameters {
    /// Reads every tensor of the model that `variant` is, of any type. `ties` are
    /// rows of its tensors (alias, donor) that are one parameter from now on: the
    /// donor's numbers.
    ///
    /// # Errors
    /// When a tensor has no numbers, or a tie no rows.
    pub fn read(
        variant: &Variant<'_>,
        ties: &[(RowsRange, RowsRange)],
    ) -> Result<Self, TrainError> {
        let path = variant.source.path();
        let mut this = Self {
            list: Vec::new(),
            by_name: BTreeMap::new(),
            ties: Vec::new(),
            silent: BTreeMap::new(),
        };
        for (i, info) in variant.gguf().tensors().iter().enumerate() {
            let columns = info.row_elems() as usize;
            let rows = info.rows() as usize;
            let mut values = vec![0.0; rows * columns];
            let bytes = variant.tensor_data(i)?;
            dequantize_row(info.ggml_type.id(), &bytes, &mut values).map_err(|error| {
                TrainError::Weights {
                    path: path.to_owned(),
                    tensor: info.name.clone(),
                    error,
                }
            })?;
            this.by_name.insert(info.name.clone(), i);
            this.list.push(Parameter {
                name: info.name.clone(),
                rows,
                columns,
                values: Arc::new(Numbers::new(values)),
                codes: None,
            });
        }
        this.tie(variant, ties)?;
        Ok(this)
    }

    /// Makes one parameter each of rows (alias, donor) of the tensors of `variant`, which
    /// these are the parameters of: with the donor's numbers, and in the place of the ties
    /// that there were.
    ///
    /// # Errors
    /// When a tie has no rows, or they are not alike.
    pub fn tie(
        &mut self,
        variant: &Variant<'_>,
        ties: &[(RowsRange, RowsRange)],
    ) -> Result<(), TrainError> {
        self.tie_all(self::ties(variant, ties)?)
    }

    /// The same with rows of these parameters.
    ///
    /// # Errors
    /// When a tie has no rows, or they are not alike.
    pub(crate) fn tie_all(&mut self, ties: Vec<Tie>) -> Result<(), TrainError> {
        self.check_ties(&ties)?;
        self.ties = ties;
        self.copy_ties(|_| true);
        Ok(())
    }

    /// Lets `columns` of the parameter `name` be zero from now on, and have no gradients.
    ///
    /// # Errors
    /// When there are no such columns.
    pub fn silence(&mut self, name: &str, columns: Range<usize>) -> Result<(), TrainError> {
        let index = self.index(name);
        let index = index.filter(|&i| columns.end <= self.list[i].columns);
        let index = index.ok_or_else(|| TrainError::Parameter {
            name: name.to_owned(),
            problem: format!("has no columns {} to {}", columns.start, columns.end),
        })?;
        self.silent.entry(index).or_default().push(columns);
        self.put_zeros(index);
        Ok(())
    }

    /// The columns of a parameter in which zeros are. Where its stored form is kept, what that
    /// has there stays: a block that is silent in part is nearly zero there.
    fn silence_of(&self, index: usize) -> Option<&[Range<usize>]> {
        let silent = self.silent.get(&index)?;
        (self.list[index].codes.is_none()).then_some(silent)
    }

    /// Puts zeros into the silent columns of a parameter.
    fn put_zeros(&mut self, index: usize) {
        if let Some(silent) = self.silence_of(index).map(<[_]>::to_vec) {
            let parameter = &mut self.list[index];
            let values = Arc::make_mut(&mut parameter.values);
            zero(values.as_mut_slice(), parameter.columns, &silent);
        }
    }

    /// Puts zeros where a parameter's silent columns are, into `numbers` that are like its
    /// own.
    pub(crate) fn put_silence(&self, index: usize, numbers: &mut [f32]) {
        if let Some(silent) = self.silence_of(index) {
            zero(numbers, self.list[index].columns, silent);
        }
    }

    /// Refuses ties of rows that are not alike, or one with an alias for a donor.
    ///
    /// # Errors
    /// Names the tensor.
    pub(crate) fn check_ties(&self, ties: &[Tie]) -> Result<(), TrainError> {
        for tie in ties {
            let (alias, donor) = (&tie.alias, &tie.donor);
            let name = &self.list[alias.0].name;
            if alias.1.len() != donor.1.len()
                || self.list[alias.0].columns != self.list[donor.0].columns
            {
                let problem = format!("rows of {name} and of their donor are not alike");
                return Err(TrainError::option("ties", problem));
            }
            let chained = |other: &Tie| {
                other.alias.0 == donor.0
                    && other.alias.1.start < donor.1.end
                    && donor.1.start < other.alias.1.end
            };
            if ties.iter().any(chained) {
                let problem = format!("rows of {name} are tied to rows that are tied themselves");
                return Err(TrainError::option("ties", problem));
            }
        }
        Ok(())
    }

    /// Makes aliases equal to their donors, of those ties that `which` names.
    fn copy_ties(&mut self, which: impl Fn(&Tie) -> bool) {
        for tie in self.ties.iter().filter(|tie| which(tie)) {
            let donor = self.rows(&tie.donor).to_vec();
            let numbers = self.numbers(&tie.alias);
            let alias = Arc::make_mut(&mut self.list[tie.alias.0].values);
            alias.as_mut_slice()[numbers].copy_from_slice(&donor);
        }
    }

    /// Which numbers of a parameter some of its rows are.
    pub(crate) fn numbers(&self, (parameter, of): &(usize, Range<usize>)) -> Range<usize> {
        rows(of, self.list[*parameter].columns)
    }

    /// Some rows of a parameter.
    pub(crate) fn rows(&self, of: &(usize, Range<usize>)) -> &[f32] {
        &self.list[of.0].values()[self.numbers(of)]
    }

    /// Keeps the stored form of the quantized tensors of `variant`, which these are the
    /// parameters of, so that the scales in it can be trained; rows that are tied are
    /// their donors'.
    ///
    /// # Errors
    /// When a tensor's data cannot be had.
    pub fn keep_codes(&mut self, variant: &Variant<'_>) -> Result<(), TrainError> {
        for (i, info) in variant.gguf().tensors().iter().enumerate() {
            let bytes = self.stored(variant, i)?;
            self.list[i].codes = Codes::new(info.ggml_type, bytes);
        }
        Ok(())
    }

    /// A tensor of `variant`, which these are the parameters of, as it is stored, with
    /// the donors' rows where rows are tied.
    ///
    /// # Errors
    /// When its data cannot be had.
    pub(crate) fn stored(
        &self,
        variant: &Variant<'_>,
        index: usize,
    ) -> Result<Vec<u8>, TrainError> {
        let mut bytes = variant.tensor_data(index)?.into_owned();
        let tensors = variant.gguf().tensors();
        for tie in self.ties.iter().filter(|tie| tie.alias.0 == index) {
            let donor = variant.tensor_data(tie.donor.0)?;
            let of = |(tensor, of): &(usize, Range<usize>)| {
                rows(of, tensors[*tensor].row_bytes() as usize)
            };
            if tensors[tie.donor.0].ggml_type != tensors[index].ggml_type {
                let problem = format!("{} and its donor have other types", tensors[index].name);
                return Err(TrainError::option("ties", problem));
            }
            bytes[of(&tie.alias)].copy_from_slice(&donor[of(&tie.donor)]);
        }
        Ok(bytes)
    }

    /// The stored form of parameter `index` where that is kept, with the donors' rows
    /// where rows are tied.
    ///
    /// # Errors
    /// When a donor's is not kept.
    pub(crate) fn codes(&self, index: usize) -> Result<Option<Vec<u8>>, TrainError> {
        let Some(codes) = self.list[index].codes() else {
            return Ok(None);
        };
        let mut codes = codes.clone();
        for tie in self.ties.iter().filter(|tie| tie.alias.0 == index) {
            let row = codes.bytes().len() / self.list[index].rows;
            let donor = self.list[tie.donor.0].codes();
            let donor = donor.map(|donor| &donor.bytes()[rows(&tie.donor.1, row)]);
            let donor = donor.ok_or_else(|| {
                let problem = format!(
                    "{} is not kept as it is stored",
                    self.list[tie.donor.0].name
                );
                TrainError::option("ties", problem)
            })?;
            codes.copy(rows(&tie.alias.1, row).start, donor);
        }
        Ok(Some(codes.into_bytes()))
    }

    /// Sets the scales of a parameter whose stored form is kept, and its numbers with
    /// them; of its tied rows, the donor's stay.
    ///
    /// # Errors
    /// When its stored form is not kept.
    pub(crate) fn set_fields(&mut self, index: usize, fields: &[f32]) -> Result<(), TrainError> {
        let parameter = &mut self.list[index];
        let error = |problem: String| TrainError::Parameter {
            name: parameter.name.clone(),
            problem,
        };
        let codes = parameter.codes.as_mut();
        let codes = codes.ok_or_else(|| error("its stored form is not kept".to_owned()))?;
        codes.set(fields);
        let weights = codes.weights().map_err(|e| error(e.to_string()))?;
        self.set(index, weights)
    }

    /// Bytes that they take, stored forms included.
    pub fn bytes(&self) -> usize {
        let of = |p: &Parameter| 4 * p.values().len() + p.codes().map_or(0, |c| c.bytes().len());
        self.list.iter().map(of).sum()
    }

    /// All of them, in the file's order.
    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// Which one is called `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The ties.
    pub fn ties(&self) -> &[Tie] {
        &self.ties
    }

    /// Lets `change` write the numbers of some parameters, and makes aliases equal to
    /// their donors, and silent columns zero again.
    pub(crate) fn change(&mut self, mut change: impl FnMut(usize, &mut [f32])) {
        for (i, parameter) in self.list.iter_mut().enumerate() {
            change(i, Arc::make_mut(&mut parameter.values).as_mut_slice());
        }
        for index in 0..self.list.len() {
            self.put_zeros(index);
        }
        self.copy_ties(|_| true);
    }

    /// Replaces the numbers of one parameter; of its tied rows, the donor's stay, and its
    /// silent columns stay zero.
    ///
    /// # Errors
    /// When they are not as many.
    pub fn set(&mut self, index: usize, values: Vec<f32>) -> Result<(), TrainError> {
        let parameter = &mut self.list[index];
        if values.len() != parameter.values().len() {
            return Err(TrainError::Parameter {
                name: parameter.name.clone(),
                problem: format!("{} numbers for {}", values.len(), parameter.values().len()),
            });
        }
        parameter.values = Arc::new(Numbers::new(values));
        self.put_zeros(index);
        self.copy_ties(|tie| tie.alias.0 == index || tie.donor.0 == index);
        Ok(())
    }

    /// Some `numbers` of a parameter, `rows` of them, as operations take them; with a
    /// tensor of the device where operations are candle's.
    pub(crate) fn weight(
        &self,
        (index, range, rows): (usize, Range<usize>, usize),
        sums: Option<&Gradients>,
        device: Option<&Device>,
    ) -> Result<Weight, TrainError> {
        let parameter = &self.list[index];
        let tensor = match device {
            Some(device) => {
                let values = &parameter.values()[range.clone()];
                let tensor = match parameter.rows {
                    1 => Tensor::from_slice(values, values.len(), device)?,
                    _ => Tensor::from_slice(values, (rows, parameter.columns), device)?,
                };
                let wanted = sums.is_some_and(|sums| sums.list[index].is_some());
                Some(match wanted {
                    true => Var::from_tensor(&tensor)?.as_tensor().clone(),
                    false => tensor,
                })
            }
            None => None,
        };
        Ok(Weight {
            values: Arc::clone(&parameter.values),
            range,
            rows,
            sum: sums.and_then(|sums| sums.list[index].clone()),
            tensor,
        })
    }
}

/// Where rows of `len` are.
fn rows(of: &Range<usize>, len: usize) -> Range<usize> {
    of.start * len..of.end * len
}

/// Puts zeros into some `columns` of rows of `width` numbers.
fn zero(rows: &mut [f32], width: usize, columns: &[Range<usize>]) {
    for row in rows.chunks_exact_mut(width) {
        for columns in columns {
            row[columns.clone()].fill(0.0);
        }
    }
}

/// Rows (alias, donor) of the tensors of `variant`, as ties of its parameters.
///
/// # Errors
/// When rows are not there.
pub(crate) fn ties(
    variant: &Variant<'_>,
    rows: &[(RowsRange, RowsRange)],
) -> Result<Vec<Tie>, TrainError> {
    let tie = |(alias, donor): &(RowsRange, RowsRange)| {
        Ok(Tie {
            alias: rows_in(variant, alias)?,
            donor: rows_in(variant, donor)?,
        })
    };
    rows.iter().map(tie).collect()
}

/// The rows of a tensor that `range`, in bytes, is.
fn rows_in(variant: &Variant<'_>, range: &RowsRange) -> Result<(usize, Range<usize>), TrainError> {
    let info = variant.gguf().tensors().get(range.tensor);
    let info = info.ok_or_else(|| TrainError::option("ties", "a tensor that is not there"))?;
    let row = info.row_bytes().max(1);
    let (first, rows) = (range.offset / row, range.len / row);
    if first + rows > info.rows() {
        let problem = format!("{} has {} rows", info.name, info.rows());
        return Err(TrainError::option("ties", problem));
    }
    Ok((range.tensor, first as usize..(first + rows) as usize))
}

/// Sums of the gradients of those parameters that are wanted.
#[derive(Debug)]
pub struct Gradients {
    list: Vec<Option<Sum>>,
}

impl Gradients {
    /// Zeros for each parameter that `wanted` (by index) says yes to, and for donors
    /// of those.
    pub fn zeros(parameters: &Parameters, wanted: impl Fn(usize) -> bool) -> Self {
        let mut all: Vec<bool> = (0..parameters.list.len()).map(&wanted).collect();
        for tie in &parameters.ties {
            all[tie.donor.0] |= all[tie.alias.0];
        }
        let zeros = |(parameter, wanted): (&Parameter, bool)| {
            wanted.then(|| Arc::new(Mutex::new(vec![0.0; parameter.values().len()])))
        };
        Self {
            list: parameters.list.iter().zip(all).map(zeros).collect(),
        }
    }

    /// Bytes that the sums take.
    pub fn bytes(&self) -> usize {
        let sums = self.list.iter().flatten();
        sums.map(|sum| 4 * lock(sum).len()).sum()
    }

    /// Whether parameter `index` has a sum.
    pub fn has(&self, index: usize) -> bool {
        self.list[index].is_some()
    }

    /// Hands the sum of parameter `index` to `with`, where there is one.
    pub fn with<T>(&self, index: usize, with: impl FnOnce(&mut [f32]) -> T) -> Option<T> {
        let sum = self.list[index].as_ref()?;
        Some(with(&mut lock(sum)))
    }

    /// Adds up what aliases have for their donors, whose rows they are, and leaves
    /// them none; nor silent columns any.
    pub fn fold_ties(&self, parameters: &Parameters) {
        for (&index, silent) in &parameters.silent {
            let columns = parameters.list[index].columns;
            self.with(index, |sum| zero(sum, columns, silent));
        }
        for tie in &parameters.ties {
            let alias = parameters.numbers(&tie.alias);
            let taken = self.with(tie.alias.0, |sum| {
                let taken = sum[alias.clone()].to_vec();
                sum[alias].fill(0.0);
                taken
            });
            let donor = parameters.numbers(&tie.donor);
            if let Some(taken) = taken {
                self.with(tie.donor.0, |sum| add(&mut sum[donor], &taken));
            }
        }
    }

    /// Makes all zeros again.
    pub fn clear(&self) {
        for index in 0..self.list.len() {
            self.with(index, |sum| sum.fill(0.0));
        }
    }
}
