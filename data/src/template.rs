//! The text of an input, made of the fields of a row.

/// Text with places for fields, as in `mrpc sentence1: {sentence1} sentence2: {sentence2}`; `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    fields: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// By its place among the fields.
    Field(usize),
}

impl Template {
    /// # Errors
    /// A brace that is not closed or not opened, a field without a name, a template without a field.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut template = Template { parts: Vec::new(), fields: Vec::new() };
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            template.text(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                template.text(brace);
                rest = after;
            } else if brace == "}" {
                return Err(format!("in `{text}` a `}}` closes nothing: write `}}}}` for a brace"));
            } else {
                let not_closed = || format!("in `{text}` a `{{` is not closed: write `{{{{` for a brace");
                let (field, after) = rest.split_once('}').ok_or_else(not_closed)?;
                if field.is_empty() || field.contains('{') {
                    return Err(format!("in `{text}` the braces name no field, as in `{{sentence1}}`"));
                }
                template.field(field);
                rest = after;
            }
        }
        template.text(rest);
        match template.fields.is_empty() {
            true => Err(format!("`{text}` names no field, as in `{{sentence1}}`: every input would be the same")),
            false => Ok(template),
        }
    }

    /// The input of these fields, whose names are separated by commas: one field's text alone, or several, each after its
    /// name, as in T5's prompts for the tasks of GLUE: `sentence1: {sentence1} sentence2: {sentence2}`.
    pub fn of_fields(names: &str) -> Template {
        let mut template = Template { parts: Vec::new(), fields: Vec::new() };
        let several = names.contains(',');
        for name in names.split(',').map(str::trim).filter(|name| !several || !name.is_empty()) {
            if several {
                let blank = if template.parts.is_empty() { "" } else { " " };
                template.text(&format!("{blank}{name}: "));
            }
            template.field(name);
        }
        template
    }

    fn text(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Text(before)) => before.push_str(text),
            _ => self.parts.push(Part::Text(text.to_owned())),
        }
    }

    fn field(&mut self, name: &str) {
        let place = self.fields.iter().position(|field| field == name).unwrap_or_else(|| {
            self.fields.push(name.to_owned());
            self.fields.len() - 1
        });
        self.parts.push(Part::Field(place));
    }

    /// The fields, each once.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// The fields as a message names them.
    pub fn named(&self) -> String {
        self.fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ")
    }

    /// The text for a row, by the texts of the fields in their order.
    pub fn filled(&self, texts: &[String]) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(place) => texts.get(*place).cloned().unwrap_or_default(),
        };
        self.parts.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &Template) -> String {
        let texts: Vec<String> = template.fields().iter().map(|name| name.to_uppercase()).collect();
        template.filled(&texts)
    }

    #[test]
    fn fields_stand_in_their_places() {
        for (template, text) in [
            ("mrpc sentence1: {a} sentence2: {b}", "mrpc sentence1: A sentence2: B"),
            ("{b}{a}{b}", "BAB"),
            ("{{{a}}} and {{}}", "{A} and {}"),
            ("{a column}", "A COLUMN"),
            ("{a,b}", "A,B"),
        ] {
            assert_eq!(filled(&Template::parse(template).expect(template)), text);
        }
    }

    #[test]
    fn what_is_not_a_template_is_refused() {
        for (template, reason) in [
            ("a {b", "is not closed"),
            ("a} {b}", "closes nothing"),
            ("{}", "name no field"),
            ("{a{b}}", "name no field"),
            ("{{a}}", "every input would be the same"),
            ("", "every input would be the same"),
        ] {
            let error = Template::parse(template).expect_err(template);
            assert!(error.contains(reason), "{template}: {error}");
        }
    }

    #[test]
    fn several_fields_stand_behind_their_names() {
        assert_eq!(filled(&Template::of_fields("text")), "TEXT");
        assert_eq!(filled(&Template::of_fields("sentence1, sentence2")), "sentence1: SENTENCE1 sentence2: SENTENCE2");
        assert_eq!(filled(&Template::of_fields("q,p,a")), "q: Q p: P a: A");
    }
}
