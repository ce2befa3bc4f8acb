//! SLURM's compact list of hosts, as `scontrol show hostnames` would expand it.

/// The first host of a list such as `login,node[003-006,010],rack[1-2]n[01-04]`, with ranges in
/// brackets; `None` when it isn't one.
///
/// ```
/// use foretoken_dist::first_host;
///
/// assert_eq!(first_host("node[003-006,010],gpu1").as_deref(), Some("node003"));
/// assert_eq!(first_host("rack2n[12,14]-ib").as_deref(), Some("rack2n12-ib"));
/// assert_eq!(first_host("node[003"), None);
/// ```
pub fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = first_entry(list);
    while let Some(open) = rest.find(['[', ']']) {
        let (before, bracket) = rest.split_at(open);
        let (ranges, after) = bracket.strip_prefix('[')?.split_once(']')?;
        let first = ranges.split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        host.push_str(before);
        host.push_str(first);
        rest = after;
    }
    host.push_str(rest);
    let valid = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    (!host.is_empty() && host.chars().all(valid)).then_some(host)
}

/// Up to the first comma outside brackets.
fn first_entry(list: &str) -> &str {
    let mut inside = false;
    let end = list.find(|c: char| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        c == ',' && !inside
    });
    end.map_or(list, |end| &list[..end]).trim()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::first_host;

    #[test]
    fn what_is_no_list_is_refused() {
        for list in ["", "[", "]", "a]", "a[]", "a[b]", "a[-3]", "a[1", "a[1]]", "a b", ",b", "a/b"]
        {
            assert_eq!(first_host(list), None, "{list}");
        }
    }

    proptest! {
        #[test]
        fn the_first_number_of_the_first_entry_names_the_host(
            parts in prop::collection::vec(
                ("[a-z][a-z0-9-]{0,4}", 0u32..2000, 1usize..5, 0u32..9),
                1..3,
            ),
            suffix in "(-ib)?",
            others in prop::collection::vec("[a-z]{1,3}\\[[0-9]{1,2}-[0-9]{2}\\]", 0..3),
        ) {
            let (mut list, mut host) = (String::new(), String::new());
            for (prefix, number, width, more) in parts {
                let first = format!("{number:0width$}");
                let ranges = match more {
                    0 => first.clone(),
                    1..5 => format!("{first}-{:0width$}", number + more),
                    _ => format!("{first},{:0width$}-{:0width$}", number + 2, number + more),
                };
                list = format!("{list}{prefix}[{ranges}]");
                host = format!("{host}{prefix}{first}");
            }
            list += &suffix;
            host += &suffix;
            let list = std::iter::once(list).chain(others).collect::<Vec<_>>().join(",");
            prop_assert_eq!(first_host(&list), Some(host));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,24}") {
            let _ = first_host(&text);
        }
    }
}
