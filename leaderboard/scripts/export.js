// The view as a file: what is shown, with the columns that are shown.

function asRecords(shown) {
  return shown.map((row) => {
    const record = { id: rows.id[row], method: text("label", row) };
    for (const name of facetNames) record[name === "method" ? "method_name" : name] = text(name, row);
    record.fingerprint = groups[rows.group[row]].weights;
    record.settings = text("settings", row);
    record.metric = text("metric", row);
    record.documents = rows.documents[row];
    record.date = text("started", row);
    record.apart = text("apart", row);
    record.notes = notesOf(row).join("; ");
    for (const key of view.cols) {
      record[key] = number(key, row);
      for (const part of ["low", "high"]) if (numbers[key][part]) record[`${key}_${part}`] = number(key, row, part);
      if (noteOf(key, row)) record[`${key}_note`] = noteOf(key, row);
    }
    return record;
  });
}

/** A field of a comma-separated line; a text that a spreadsheet would take for a formula gets an apostrophe first. */
function csvField(value) {
  if (value === null || value === undefined) return "";
  const plain = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : `${value}`;
  return /[",\n\r]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

function asCsv(records) {
  const names = [...new Set(records.flatMap(Object.keys))];
  const lines = [names, ...records.map((record) => names.map((name) => record[name]))]; // [rows, fields]
  return lines.map((fields) => `${fields.map(csvField).join(",")}\r\n`).join("");
}

function save(name, type, content) {
  const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // milliseconds, in which the browser has taken it
}
